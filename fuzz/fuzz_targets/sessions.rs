//! libFuzzer on the target `sessions`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hookrun_fuzz::run("sessions", data));
