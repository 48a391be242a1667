//! libFuzzer on the target `http-grants`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("http-grants", data));
