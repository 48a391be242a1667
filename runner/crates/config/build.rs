//! Lists the plugins in `plugins/`, which are bundled with the program: their names are values of
//! `source = "bundled:NAME"`.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(io::ErrorKind::NotFound);
    let plugins = variable("CARGO_MANIFEST_DIR")?.join("../../../plugins");
    println!("cargo::rerun-if-changed={}", plugins.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&plugins)? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    fs::write(variable("OUT_DIR")?.join("bundled.rs"), format!("&{names:?}"))
}
