//! Sets linker flags of the two programs. A hook runs for a few milliseconds, and loading the
//! program takes a large part of that time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries that rustc links for the C library and for unwinding, each with its static archive.
const ARCHIVES: [(&str, &str); 7] = [
    ("gcc_s", "libgcc_eh.a"),
    ("util", "libutil.a"),
    ("rt", "librt.a"),
    ("pthread", "libpthread.a"),
    ("m", "libm.a"),
    ("dl", "libdl.a"),
    ("c", "libc.a"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    let Some(directory) = std::env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    if !is_gnu {
        return;
    }
    // Packed relocations (`DT_RELR`, glibc 2.36) of `hookrun` take 20 KB in place of 1.5 MB.
    if links(&directory, &["-shared", "-nostdlib", "-Wl,-z,pack-relative-relocs"]) {
        println!("cargo::rustc-link-arg-bin=hookrun=-Wl,-z,pack-relative-relocs");
    }
    for flag in static_flags(&directory).into_iter().flatten() {
        println!("cargo::rustc-link-arg-bin=hookrun-hook={flag}");
    }
}

/// Returns the flags that link a program statically, if the static libraries are installed.
///
/// The feature `crt-static` of rustc would apply to `hookrun` too, which needs the dynamic C
/// library for name look-up. So rustc names dynamic libraries, and the linker finds scripts of
/// their names, which name the archives.
fn static_flags(directory: &Path) -> Option<[String; 2]> {
    let scripts = directory.join("static");
    std::fs::create_dir_all(&scripts).ok()?;
    for (name, archive) in ARCHIVES {
        let script = format!("GROUP ( {} )\n", path_of(archive)?.display());
        std::fs::write(scripts.join(format!("lib{name}.so")), script).ok()?;
    }
    let flags = [format!("-L{}", scripts.to_str()?), "-static-pie".to_owned()];
    let [scripts, pie] = &flags;
    links(directory, &["-Wl,-Bdynamic", "-lgcc_s", "-lc", scripts, pie]).then_some(flags)
}

/// Returns the path of an archive that the linker finds by itself.
fn path_of(archive: &str) -> Option<PathBuf> {
    let output = Command::new(linker()).arg(format!("-print-file-name={archive}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then_some(path)
}

/// Asks the linker whether it accepts these flags, by linking a program that does nothing. GNU ld
/// before 2.38 only warns about a flag that it ignores, and zig's linker refuses it.
fn links(directory: &Path, flags: &[&str]) -> bool {
    let source = directory.join("nothing.c");
    if std::fs::write(&source, "int main(void) { return 0; }\n").is_err() {
        return false;
    }
    Command::new(linker())
        .arg(source)
        .arg("-o")
        .arg(directory.join("nothing"))
        .args(flags)
        .output()
        .is_ok_and(|output| output.status.success() && output.stderr.is_empty())
}

/// Returns the linker of rustc: by default `cc`, which links only for this machine.
fn linker() -> OsString {
    std::env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into())
}
