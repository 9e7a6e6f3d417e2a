//! The command line of `weir-gpu`, the executor on CUDA.
//!
//! `weir` starts it as `weir-gpu executor --device N`, having asked `weir-gpu devices` what there is. Nobody else needs it, but for
//! `weir-gpu probe`, which measures and checks a GPU without a server.

use std::process::ExitCode;

use weir_kernels::{Device, Gpu, Pool};

use crate::executor::{DeviceChoice, executor_main};
use crate::probe::{self, ProbeError};

const USAGE: &str = "usage: weir-gpu version | devices | executor --device N | probe ... [--device N]";

/// Does what the arguments (without the program's name) say.
pub fn gpu_main(args: &[String]) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["version"] => {
            println!("weir-gpu {} for compute capability {}", env!("CARGO_PKG_VERSION"), Gpu::compiled_for());
            ExitCode::SUCCESS
        }
        ["devices"] => devices(),
        ["executor", "--device", ordinal] => match ordinal.parse() {
            Ok(ordinal) => executor_main(DeviceChoice::Cuda(ordinal)),
            Err(_) => refuse(&format!("`{ordinal}` is not the number of a device")),
        },
        ["probe", ..] => probe(&args[1..]),
        _ => refuse(USAGE),
    }
}

/// One line of JSON for each GPU that this build's kernels run on. Where there are others only, why not.
fn devices() -> ExitCode {
    match Gpu::all() {
        Ok(gpus) => {
            let (usable, others): (Vec<Gpu>, Vec<Gpu>) = gpus.into_iter().partition(|gpu| gpu.check().is_ok());
            if let (true, Some(Err(error))) = (usable.is_empty(), others.first().map(Gpu::check)) {
                return refuse(&error.to_string());
            }
            for gpu in usable {
                let (major, minor) = gpu.compute_capability;
                let line = serde_json::json!({
                    "ordinal": gpu.ordinal,
                    "name": gpu.name,
                    "compute_capability": format!("{major}.{minor}"),
                    "memory_bytes": gpu.memory_bytes,
                });
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error.to_string()),
    }
}

/// A probe, on the device behind `--device`, which may stand anywhere, or on the first.
fn probe(words: &[String]) -> ExitCode {
    let mut words = words.to_vec();
    let mut ordinal = 0;
    if let Some(at) = words.iter().position(|word| word == "--device") {
        let named = words.get(at + 1).cloned().unwrap_or_default();
        ordinal = match named.parse() {
            Ok(ordinal) => ordinal,
            Err(_) => return refuse(&format!("`{named}` is not the number of a device")),
        };
        words.drain(at..at + 2);
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let done = Device::cuda(ordinal, Pool::new(threads))
        .map_err(ProbeError::from)
        .and_then(|device| probe::main(&words, &device));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error.to_string()),
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("weir-gpu: {why}");
    ExitCode::FAILURE
}
