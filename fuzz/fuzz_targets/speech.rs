//! libFuzzer on the target `speech`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("speech", data));
