//! libFuzzer on the target `stock-output`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("stock-output", data));
