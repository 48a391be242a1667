//! libFuzzer on the target `host-calls`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("host-calls", data));
