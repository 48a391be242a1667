//! libFuzzer on the target `smtp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("smtp", data));
