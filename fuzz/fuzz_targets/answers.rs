//! libFuzzer on the target `answers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("answers", data));
