//! libFuzzer on the target `journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("journal", data));
