//! libFuzzer on the target `metadata`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("metadata", data));
