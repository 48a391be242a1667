//! libFuzzer on the target `runner`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("runner", data));
