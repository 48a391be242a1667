//! libFuzzer on the target `spool`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("spool", data));
