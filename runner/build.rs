//! Flags for the linker of the program.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A hook is a process of milliseconds, and a good part of them is the loader reading 1.5 MB of
    // relocations: packed (`DT_RELR`, glibc 2.36) they are 20 KB.
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if is_gnu && linker_packs_relocations() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Asks the linker whether it knows the flag, by linking an empty library. Others than GNU ld,
/// gold, mold and lld (such as zig's) refuse it.
fn linker_packs_relocations() -> bool {
    let linker = std::env::var_os("RUSTC_LINKER").unwrap_or_else(default_linker);
    let Some(directory) = std::env::var_os("OUT_DIR") else { return false };
    std::process::Command::new(linker)
        .args(["-shared", "-nostdlib", "-Wl,-z,pack-relative-relocs", "-o"])
        .arg(std::path::Path::new(&directory).join("empty.so"))
        .args(["-x", "c", "/dev/null"])
        .output()
        // GNU ld before 2.38 only warns that it ignores the flag.
        .is_ok_and(|output| output.status.success() && output.stderr.is_empty())
}

/// What rustc uses where no linker is set: `cc`, which links for this machine only.
fn default_linker() -> std::ffi::OsString {
    "cc".into()
}
