//! libFuzzer on the target that the environment variable `HOOKRUN_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use hookrun_fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("HOOKRUN_FUZZ_TARGET").unwrap_or_default();
    Target::find(&name).unwrap_or_else(|| {
        eprintln!("HOOKRUN_FUZZ_TARGET: there is no target `{name}`; run `cargo xtask fuzz`");
        std::process::exit(2)
    })
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
