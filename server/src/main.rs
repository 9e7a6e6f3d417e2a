//! The `weir` executable; everything it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    weir_server::cli::main()
}
