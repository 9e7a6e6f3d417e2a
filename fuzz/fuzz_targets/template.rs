#![no_main]

libfuzzer_sys::fuzz_target!(
    // libFuzzer ends at any panic, also at one that the parser catches and refuses. What is not caught ends it all the same.
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| weir_server::fuzzing::run("template", bytes)
);
