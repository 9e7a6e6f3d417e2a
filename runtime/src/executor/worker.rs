//! The far side of the boundary: reads a load, then batches; answers with reports. Ends when its input ends, so it never
//! outlives the process that started it.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Mutex, PoisonError},
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
        let mut writer = stream;
        serve(&mut reader, &mut writer)
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
/// What the streams say, or a frame that makes no sense. A model that does not load is reported and ends the worker.
pub(crate) fn serve(reader: &mut impl Read, writer: &mut (impl Write + Send)) -> io::Result<()> {
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
    let writer = Mutex::new(writer);
    let say = |message: &FromExecutor| {
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write_frame(&mut **writer, message)
    };
    thread::scope(|scope| {
        scope.spawn(|| pulse.run(|| pool.runs(), |progress| say(&FromExecutor::Heartbeat { progress }).is_ok()));
        let outcome = load_and_run(&load, reader, &say, &pool, &pulse);
        pulse.stop();
        outcome
    })
}

fn load_and_run(
    load: &Load,
    reader: &mut impl Read,
    say: &impl Fn(&FromExecutor) -> io::Result<()>,
    pool: &Pool,
    pulse: &Pulse,
) -> io::Result<()> {
    let mut models = Vec::new();
    for (index, model) in load.models.iter().enumerate() {
        let index = index as u16;
        let began = Instant::now();
        match load_model(model, load, pool) {
            Ok(model) => {
                let loaded = LoadedModel {
                    model: index,
                    blocks: model.blocks(),
                    tokens_max: model.tokens_max(),
                    nanos: began.elapsed().as_nanos() as u64,
                };
                models.push(model);
                say(&FromExecutor::Loaded(loaded))?;
            }
            Err(message) => return say(&FromExecutor::LoadFailed { model: index, message }),
        }
    }
    say(&FromExecutor::Ready)?;
    while let Some(message) = wire::read_frame::<ToExecutor>(reader)? {
        let ToExecutor::Step(batch) = message else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a second load"));
        };
        let Some(model) = models.get_mut(batch.model as usize) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no model {}", batch.model)));
        };
        let Some(report) = model.run(batch, pool, pulse) else {
            return Err(io::Error::other("the fake model was told to crash"));
        };
        say(&FromExecutor::Report(report))?;
    }
    Ok(())
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
