//! libFuzzer on the target `trace`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("trace", data));
