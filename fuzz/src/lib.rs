//! Fuzz targets: functions from bytes that must neither panic, hang nor break what they promise,
//! whatever the bytes are.
//!
//! The libFuzzer program (`main.rs`) and the replay of the corpus in the ordinary tests run them. A
//! target asserts: a panic is a finding. It is a file in `targets/`, a row of [`TARGETS`], a
//! directory of seeds in `corpus/`, and a file in `dictionaries/` (libFuzzer's format) with the
//! words that its inputs are made of.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "fuzzing: a panic is how a target reports a finding"
)]

mod targets;

use std::path::PathBuf;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its directory in `corpus/` and of its file in `dictionaries/`.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "event", run: targets::event::run },
    Target { name: "config", run: targets::config::run },
    Target { name: "metadata", run: targets::metadata::run },
    Target { name: "build-hook", run: targets::build_hook::run },
    Target { name: "stock-output", run: targets::stock_output::run },
    Target { name: "machines", run: targets::machines::run },
    Target { name: "derivation", run: targets::derivation::run },
    Target { name: "host-calls", run: targets::host_calls::run },
    Target { name: "http-grants", run: targets::http_grants::run },
    Target { name: "runner", run: targets::runner::run },
    Target { name: "sessions", run: targets::sessions::run },
    Target { name: "locks", run: targets::locks::run },
    Target { name: "trace", run: targets::trace::run },
    Target { name: "journal", run: targets::journal::run },
    Target { name: "answers", run: targets::answers::run },
    Target { name: "smtp", run: targets::smtp::run },
    Target { name: "narinfo", run: targets::narinfo::run },
    Target { name: "spool", run: targets::spool::run },
];

impl Target {
    /// Returns the target called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// Returns the seeds of a target, and what was ever found with it: file name and content, sorted.
///
/// # Panics
/// The directory cannot be read.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
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
