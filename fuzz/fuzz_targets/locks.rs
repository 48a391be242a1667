//! libFuzzer on the target `locks`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("locks", data));
