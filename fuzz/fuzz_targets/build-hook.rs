//! libFuzzer on the target `build-hook`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("build-hook", data));
