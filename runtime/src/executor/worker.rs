//! The far side of the boundary: reads a load, then batches; answers with reports. Ends when its input ends, so it never
//! outlives the process that started it.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Instant,
};

use weir_kernels::{Device, Pool};
use weir_models::ModelError;

use super::{
    fake::FakeModel,
    model::{self, DeviceModel},
    pulse::Pulse,
    wire::{self, Batch, FromExecutor, Load, LoadModel, LoadedModel, Report, ToExecutor},
};

/// Which device an executor's steps run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, with as many threads as the load says.
    Cpu,
    /// The GPU with this ordinal among those that the process sees.
    Cuda(u32),
}

impl DeviceChoice {
    /// Opens it, with `threads` threads of the host; 0 takes one per available core.
    pub(crate) fn open(self, threads: u32) -> Result<Device, weir_kernels::KernelError> {
        let pool = Pool::new(match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n as usize,
        });
        match self {
            DeviceChoice::Cpu => Ok(Device::cpu(pool)),
            DeviceChoice::Cuda(ordinal) => Device::cuda(ordinal, pool),
        }
    }
}

/// Body of the executor process: speaks frames on file descriptor 0 until it is closed. Never returns.
pub fn executor_main(device: DeviceChoice) -> ! {
    let outcome = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from).and_then(|stream| {
        let mut reader = stream.try_clone()?;
        // Whoever started this process has gone. It may be in a step that does not end, and would never hear of that.
        serve(&mut reader, stream, device, || std::process::exit(1))
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
    device: DeviceChoice,
    unheard: impl Fn() + Sync,
) -> io::Result<()> {
    // Shared with the thread that loads a model beside the steps of the others, and with the heartbeat.
    let writer = Arc::new(Mutex::new(writer));
    let say = |message: &FromExecutor| wire::write_frame(&mut *held(&writer), message);
    let Some(first) = wire::read_frame::<ToExecutor>(reader)? else { return Ok(()) };
    let ToExecutor::Load(load) = first else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first frame must be a load"));
    };
    let pulse = Pulse::default();
    // Opening a GPU takes seconds, and the heart beats meanwhile.
    let opened = OnceLock::<Device>::new();
    let progress = || opened.get().map_or(0, Device::progress);
    thread::scope(|scope| {
        scope.spawn(|| {
            pulse.run(progress, |progress| say(&FromExecutor::Heartbeat { progress }).is_ok());
            if pulse.is_unheard() {
                unheard();
            }
        });
        // Also when what follows panics: the scope waits for the heartbeat.
        let _stop = StopOnDrop(&pulse);
        // A model that cannot have its device is one that cannot be loaded, for all that the other side can do about it.
        let device = match device.open(load.threads) {
            Ok(device) => opened.get_or_init(|| device),
            Err(error) => return say(&FromExecutor::LoadFailed { model: 0, message: error.to_string() }),
        };
        let outcome = load_and_run(&load, reader, &writer, device, &pulse);
        if outcome.is_err() {
            // The libraries that hold on to a GPU panic when they let go of one that is lost, and this process ends anyway.
            std::mem::forget(device.clone());
        }
        outcome
    })
}

/// Stops a pulse.
struct StopOnDrop<'a>(&'a Pulse);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn load_and_run<W: Write + Send + 'static>(
    load: &Load,
    reader: &mut impl Read,
    writer: &Arc<Mutex<W>>,
    device: &Device,
    pulse: &Pulse,
) -> io::Result<()> {
    let lost = |error: ModelError| io::Error::other(error.to_string());
    let say = |message: &FromExecutor| wire::write_frame(&mut *held(writer), message);
    let kv_bytes = match model::kv_bytes(&load.models, load, device, true) {
        Ok(kv_bytes) => kv_bytes,
        Err(error) => return say(&FromExecutor::LoadFailed { model: 0, message: error.to_string() }),
    };
    let models: Arc<Mutex<Vec<Option<Model>>>> = Arc::default();
    for (index, model) in load.models.iter().enumerate() {
        let index = index as u16;
        if *model == LoadModel::Elsewhere {
            held(&models).push(None);
            continue;
        }
        let began = Instant::now();
        let model = load_model(model, load, kv_bytes, device);
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
                let Some(report) = model.run(batch, pulse).map_err(lost)? else {
                    return Err(io::Error::other("the fake model was told to crash"));
                };
                drop(models);
                say(&FromExecutor::Report(report))?;
            }
            ToExecutor::AddModel { model: index, load: place } => {
                let (load, device, models, writer) = (load.clone(), device.clone(), models.clone(), writer.clone());
                thread::Builder::new().name("executor-loader".into()).stack_size(LOADER_STACK_BYTES).spawn(
                    move || {
                        let began = Instant::now();
                        // One that was loaded here and refused elsewhere is nobody's: its memory is this one's.
                        held(&models).truncate(index as usize);
                        let load_it = || {
                            let models = std::slice::from_ref(&place);
                            let kv_bytes = model::kv_bytes(models, &load, &device, false).map_err(|e| e.to_string())?;
                            load_model(&place, &load, kv_bytes, &device)
                        };
                        // A panic here must not take the other models' executor with it.
                        let model = catch_unwind(AssertUnwindSafe(load_it))
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
    Device(Box<DeviceModel>),
    Fake(FakeModel),
}

fn load_model(model: &LoadModel, load: &Load, kv_bytes: u64, device: &Device) -> Result<Model, String> {
    match model {
        LoadModel::Path(path) => {
            let model = DeviceModel::load(path.as_ref(), load, kv_bytes, device);
            model.map(Box::new).map(Model::Device).map_err(|e| e.to_string())
        }
        LoadModel::Fake { cost, seed } => Ok(Model::Fake(FakeModel::new(*cost, *seed, load.step_tokens_max))),
        LoadModel::Elsewhere => Err("it belongs to other devices".into()),
    }
}

impl Model {
    fn loaded(&self, model: u16, began: Instant) -> LoadedModel {
        let nanos = began.elapsed().as_nanos() as u64;
        LoadedModel { model, blocks: self.blocks(), tokens_max: self.tokens_max(), nanos }
    }

    fn blocks(&self) -> u32 {
        match self {
            Model::Device(model) => model.blocks(),
            Model::Fake(model) => model.blocks(),
        }
    }

    fn tokens_max(&self) -> u32 {
        match self {
            Model::Device(model) => model.tokens_max(),
            Model::Fake(model) => model.tokens_max(),
        }
    }

    /// The report of a step; nothing if a fake model was told to crash.
    ///
    /// # Errors
    /// If the device is lost.
    fn run(&mut self, batch: Batch, pulse: &Pulse) -> Result<Option<Report>, ModelError> {
        let step = batch.step;
        Ok(match self {
            Model::Device(model) => {
                let (rows, device_nanos) = model.run(batch)?;
                Some(Report { step, device_nanos, rows })
            }
            Model::Fake(model) => model.run(batch, Instant::now(), pulse).map(|(rows, elapsed)| Report {
                step,
                device_nanos: elapsed.as_nanos() as u64,
                rows,
            }),
        })
    }
}
