//! libFuzzer on the target `derivation`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("derivation", data));
