//! Flags for the linker of the program.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A hook is a process of milliseconds, and a good part of them is the loader reading 1.5 MB of
    // relocations: packed (`DT_RELR`, glibc 2.36) they are 20 KB.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
