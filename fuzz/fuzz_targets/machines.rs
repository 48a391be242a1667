//! libFuzzer on the target `machines`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("machines", data));
