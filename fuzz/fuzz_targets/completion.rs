#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weir_server::fuzzing::run("completion", bytes));
