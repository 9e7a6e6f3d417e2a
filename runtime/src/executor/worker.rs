//! The far side of the boundary: reads a load, then batches; answers with reports. Ends when its input ends, so it never
//! outlives the process that started it.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use weir_kernels::Pool;

use super::{
    cpu::CpuModel,
    fake::FakeModel,
    pulse::Pulse,
    wire::{self, Batch, FromExecutor, Load, LoadModel, LoadedModel, Report, ToExecutor},
};

/// Body of the executor process: speaks frames on file descriptor 0 until it is closed. Never returns.
pub fn executor_main() -> ! {
    let outcome = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from).and_then(|stream| {
        let mut reader = stream.try_clone()?;
        // Whoever started this process has gone. It may be in a step that does not end, and would never hear of that.
        serve(&mut reader, stream, || std::process::exit(1))
    });
    match outcome {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("weir executor: {error}");
            std::process::exit(1)
        }
    }
}

/// Serves one load over `reader` and `writer`, with a heartbeat from the first frame on.
///
/// # Errors
/// What the streams say, or a frame that makes no sense. A model that does not load is reported; a required
/// one ends the worker.
///
/// Calls `unheard` when a heartbeat cannot be said.
pub(crate) fn serve(
    reader: &mut impl Read,
    writer: impl Write + Send + 'static,
    unheard: impl Fn() + Sync,
) -> io::Result<()> {
    // Shared with the thread that loads a model beside the steps of the others, and with the heartbeat.
    let writer = Arc::new(Mutex::new(writer));
    let say = |message: &FromExecutor| wire::write_frame(&mut *held(&writer), message);
    let Some(first) = wire::read_frame::<ToExecutor>(reader)? else { return Ok(()) };
    let ToExecutor::Load(load) = first else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first frame must be a load"));
    };
    let threads = match load.threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    };
    let pool = Pool::new(threads);
    let pulse = Pulse::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            pulse.run(|| pool.runs(), |progress| say(&FromExecutor::Heartbeat { progress }).is_ok());
            if pulse.is_unheard() {
                unheard();
            }
        });
        let outcome = load_and_run(&load, reader, &writer, &pool, &pulse);
        pulse.stop();
        outcome
    })
}

fn load_and_run<W: Write + Send + 'static>(
    load: &Load,
    reader: &mut impl Read,
    writer: &Arc<Mutex<W>>,
    pool: &Pool,
    pulse: &Pulse,
) -> io::Result<()> {
    let say = |message: &FromExecutor| wire::write_frame(&mut *held(writer), message);
    let models: Arc<Mutex<Vec<Option<Model>>>> = Arc::default();
    for (index, model) in load.models.iter().enumerate() {
        let index = index as u16;
        let began = Instant::now();
        let model = load_model(model, load, pool);
        let message = match &model {
            Ok(model) => FromExecutor::Loaded(model.loaded(index, began)),
            Err(message) => FromExecutor::LoadFailed { model: index, message: message.clone() },
        };
        let failed = model.is_err();
        held(&models).push(model.ok());
        say(&message)?;
        if failed && u32::from(index) < load.required {
            return Ok(());
        }
    }
    say(&FromExecutor::Ready)?;
    while let Some(message) = wire::read_frame::<ToExecutor>(reader)? {
        match message {
            ToExecutor::Step(batch) => {
                let mut models = held(&models);
                let Some(model) = models.get_mut(batch.model as usize).and_then(Option::as_mut) else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no model {}", batch.model)));
                };
                let Some(report) = model.run(batch, pool, pulse) else {
                    return Err(io::Error::other("the fake model was told to crash"));
                };
                drop(models);
                say(&FromExecutor::Report(report))?;
            }
            ToExecutor::AddModel { model: index, load: place } => {
                let (load, pool, models, writer) = (load.clone(), pool.clone(), models.clone(), writer.clone());
                thread::Builder::new().name("executor-loader".into()).stack_size(LOADER_STACK_BYTES).spawn(
                    move || {
                        let began = Instant::now();
                        // A panic here must not take the other models' executor with it.
                        let model = catch_unwind(AssertUnwindSafe(|| load_model(&place, &load, &pool)))
                            .unwrap_or_else(|_| Err("loading it failed in a way that is a bug".into()));
                        let message = match model {
                            Ok(model) => {
                                let loaded = model.loaded(index, began);
                                let mut models = held(&models);
                                models.truncate(index as usize);
                                models.resize_with(index as usize, || None);
                                models.push(Some(model));
                                FromExecutor::Added(loaded)
                            }
                            Err(message) => FromExecutor::AddFailed(message),
                        };
                        // Nobody listens only when the executor is about to end.
                        let _ = wire::write_frame(&mut *held(&writer), &message);
                    },
                )?;
            }
            ToExecutor::Load(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a second load")),
        }
    }
    Ok(())
}

/// Stack of the thread that loads a model.
const LOADER_STACK_BYTES: usize = 8 << 20;

/// What a thread left that panicked is whole: models and frames are put in place in one go.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loaded model of either sort.
enum Model {
    Cpu(Box<CpuModel>),
    Fake(FakeModel),
}

fn load_model(model: &LoadModel, load: &Load, pool: &Pool) -> Result<Model, String> {
    match model {
        LoadModel::Path(path) => {
            CpuModel::load(path.as_ref(), load, pool).map(Box::new).map(Model::Cpu).map_err(|e| e.to_string())
        }
        LoadModel::Fake { cost, seed } => Ok(Model::Fake(FakeModel::new(*cost, *seed, load.step_tokens_max))),
    }
}

impl Model {
    fn loaded(&self, model: u16, began: Instant) -> LoadedModel {
        let nanos = began.elapsed().as_nanos() as u64;
        LoadedModel { model, blocks: self.blocks(), tokens_max: self.tokens_max(), nanos }
    }

    fn blocks(&self) -> u32 {
        match self {
            Model::Cpu(model) => model.blocks(),
            Model::Fake(model) => model.blocks(),
        }
    }

    fn tokens_max(&self) -> u32 {
        match self {
            Model::Cpu(model) => model.tokens_max(),
            Model::Fake(model) => model.tokens_max(),
        }
    }

    /// The report of a step; nothing if a fake model was told to crash.
    fn run(&mut self, batch: Batch, pool: &Pool, pulse: &Pulse) -> Option<Report> {
        let began = Instant::now();
        let step = batch.step;
        let (rows, elapsed) = match self {
            Model::Cpu(model) => {
                let rows = model.run(batch, pool);
                (rows, began.elapsed())
            }
            Model::Fake(model) => model.run(batch, began, pulse)?,
        };
        Some(Report { step, device_nanos: elapsed.as_nanos() as u64, rows })
    }
}
