//! Fuzz targets: functions from bytes that must neither panic, hang nor break what they promise,
//! whatever the bytes are.
//!
//! The libFuzzer programs in `fuzz_targets/`, the driver ([`drive`]) and the replay of the corpus
//! in the ordinary tests all call [`run`]. A target asserts: a panic is a finding.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "fuzzing: a panic is how a target says that it found something"
)]

pub mod drive;
pub mod mutate;
mod targets;

use std::path::PathBuf;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// What it reads, for people.
    pub about: &'static str,
    /// Words that its inputs are made of.
    pub dictionary: &'static [&'static str],
    run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::event::TARGET,
    targets::config::TARGET,
    targets::metadata::TARGET,
    targets::build_hook::TARGET,
    targets::stock_output::TARGET,
    targets::machines::TARGET,
    targets::derivation::TARGET,
    targets::host_calls::TARGET,
    targets::http_grants::TARGET,
    targets::runner::TARGET,
    targets::sessions::TARGET,
    targets::locks::TARGET,
    targets::trace::TARGET,
    targets::journal::TARGET,
    targets::answers::TARGET,
    targets::smtp::TARGET,
    targets::spool::TARGET,
];

/// A target with a defect, for the tests of the driver; in no list.
const PLANTED: Target = Target {
    name: "planted",
    about: "a planted defect",
    dictionary: &["defect"],
    run: targets::planted,
};

impl Target {
    /// The target called `name`.
    pub fn find(name: &str) -> Option<Self> {
        TARGETS.iter().chain([&PLANTED]).find(|target| target.name == name).copied()
    }

    /// Runs one input.
    pub fn run(&self, data: &[u8]) {
        (self.run)(data);
    }
}

/// Runs one input of the target `name`.
///
/// # Panics
/// There is no such target, or it found something.
pub fn run(name: &str, data: &[u8]) {
    Target::find(name).unwrap_or_else(|| panic!("there is no target `{name}`")).run(data);
}

/// The seeds of a target, and what was ever found with it: file name and content, sorted.
///
/// # Panics
/// The directory cannot be read.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = directory().join("corpus").join(target);
    let entries = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// This crate's directory.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
