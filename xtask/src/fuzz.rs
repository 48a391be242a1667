//! `cargo xtask fuzz`: every fuzz target for a bounded time.
//!
//! libFuzzer guides the inputs by coverage and needs a C++ compiler, but no nightly compiler: the
//! coverage flags are stable, and are given to this workspace's crates only (`fuzz/coverage.sh`).
//! Inputs that fail are written to `fuzz/artifacts`. After the fault is fixed, they belong into
//! `fuzz/corpus`, which the ordinary tests replay.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo, repository, target_directory};

/// Names the target to the program.
const TARGET: &str = "HOOKRUN_FUZZ_TARGET";
/// Longest input, in bytes.
const MAX_LENGTH: usize = 64 << 10;
/// Seconds that one input may take.
const PATIENCE: u32 = 20;
/// Memory that one input may make a target use, in MiB.
const MEMORY: u32 = 2048;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds for each target.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Which targets; by default all.
    targets: Vec<String>,
}

/// The targets: the directories of the corpus.
fn targets(options: &Options) -> Result<Vec<String>> {
    let mut known: Vec<String> = Vec::new();
    for entry in
        std::fs::read_dir(repository().join("fuzz/corpus")).context("fuzz/corpus cannot be read")?
    {
        known.push(entry?.file_name().to_string_lossy().into_owned());
    }
    known.sort();
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no target `{unknown}`; known: {}", known.join(", "));
    }
    Ok(if options.targets.is_empty() { known } else { options.targets.clone() })
}

/// Builds and runs.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Compiler)?;
    let targets = targets(options)?;
    // Always the whole workspace, so that dependencies are those of any other build; and in its
    // target directory, where the wrapper gives what it compiles names of its own.
    cargo()
        .args(["build", "--workspace", "--features", "hookrun-fuzz/libfuzzer"])
        .args(["--bin", "hookrun-fuzz"])
        .env("RUSTC_WORKSPACE_WRAPPER", repository().join("fuzz/coverage.sh"))
        .run()?;
    let program = target_directory()?.join("debug/hookrun-fuzz");
    let mut found = Vec::new();
    for target in &targets {
        match one(&program, target, options.seconds)? {
            Ended::Nothing(line) => println!("{target:<12} {line}, nothing found"),
            Ended::Found(file) => {
                println!("{target:<12} FOUND {}", file.display());
                println!(
                    "             again: {TARGET}={target} {} {}",
                    program.display(),
                    file.display()
                );
                found.push(target.clone());
            }
        }
    }
    if !found.is_empty() {
        bail!("found something in {}; the inputs are in fuzz/artifacts", found.join(", "));
    }
    Ok(())
}

/// What became of a target.
enum Ended {
    /// libFuzzer's own last line.
    Nothing(String),
    /// The input.
    Found(PathBuf),
}

fn one(program: &Path, target: &str, seconds: u64) -> Result<Ended> {
    let artifacts = repository().join("fuzz/artifacts").join(target);
    std::fs::create_dir_all(&artifacts)?;
    // New inputs go into the first directory, which is thrown away: the corpus in the repository is
    // kept small by hand.
    let scratch = artifacts.join("corpus");
    std::fs::create_dir_all(&scratch)?;
    let before = Instant::now();
    let output = Command::new(program)
        .env(TARGET, target)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-timeout={PATIENCE}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-dict={}", repository().join("fuzz/dictionaries").join(target).display()))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&scratch)
        .arg(repository().join("fuzz/corpus").join(target))
        .output()
        .with_context(|| format!("{} does not start", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        // `Done 12345 runs in 21 second(s)`, and `cov: 678` before.
        let runs = said
            .lines()
            .rev()
            .find(|line| line.starts_with("Done "))
            .unwrap_or("no line of libFuzzer's");
        let coverage =
            said.lines().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next());
        let coverage =
            coverage.map(|count| format!(", {count} places reached")).unwrap_or_default();
        return Ok(Ended::Nothing(format!("{runs}{coverage}")));
    }
    let path = said
        .lines()
        .rev()
        .find_map(|line| line.split("Test unit written to ").nth(1))
        .map(PathBuf::from);
    let Some(path) = path else {
        eprint!("{said}");
        bail!(
            "the target `{target}` ended after {} s ({})",
            before.elapsed().as_secs(),
            output.status
        );
    };
    // What the panic said.
    for line in
        said.lines().filter(|line| line.contains("panicked at") || line.starts_with("==")).take(4)
    {
        eprintln!("{line}");
    }
    Ok(Ended::Found(path))
}
