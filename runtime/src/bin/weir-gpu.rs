//! The executor on CUDA; see [`weir_runtime::gpu_main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    weir_runtime::gpu_main(&args)
}
