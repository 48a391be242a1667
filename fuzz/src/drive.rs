//! The driver for a stable compiler: mutates the corpus by a seeded generator and runs the target
//! on what comes out, for a bounded time. It is not guided by coverage, and says so; libFuzzer is
//! (`cargo xtask fuzz` prefers it where it can be built).
//!
//! Two processes: a panic is caught in the one that runs inputs, but a stack that overflows, an
//! abort or a hang ends it. So that one writes each input into a file before it runs it, and the
//! other one finds there what ended it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::mutate::Mutator;
use crate::{Target, corpus};

/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Exit code of the running process when it found something.
const FOUND: i32 = 77;
/// The length of the input stands before it in the file.
const LENGTH: usize = 8;

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs run.
    pub executions: u64,
    /// The file with the input that was found, if one was.
    pub found: Option<PathBuf>,
}

/// Runs `target` for `time` in a process of its own; `program` is this program. What is found goes
/// into `artifacts`.
///
/// # Errors
/// The process cannot be started, or says nothing that can be read.
pub fn parent(
    program: &Path,
    target: &Target,
    time: Duration,
    seed: u64,
    artifacts: &Path,
) -> Result<Outcome> {
    let scratch = tempfile::tempdir()?;
    let current = scratch.path().join("input");
    let mut child = Command::new(program)
        .args([
            "run",
            target.name,
            "--milliseconds",
            &time.as_millis().to_string(),
            "--seed",
            &seed.to_string(),
        ])
        .arg("--current")
        .arg(&current)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} does not start", program.display()))?;
    let mut said = String::new();
    child.stdout.take().context("the pipe was asked for")?.read_to_string(&mut said)?;
    let status = child.wait()?;
    // The last number that came out: a process that died has said how far it was.
    let executions = said.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or(0);
    if status.success() {
        return Ok(Outcome { executions, found: None });
    }
    let input = read_current(&current)
        .with_context(|| format!("the process of `{}` ended ({status})", target.name))?;
    let digest = Sha256::digest(&input)
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let directory = artifacts.join(target.name);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("crash-{digest}"));
    std::fs::write(&path, input)?;
    Ok(Outcome { executions, found: Some(path) })
}

fn read_current(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let (length, rest) = bytes.split_at_checked(LENGTH).context("no input was run")?;
    let length = usize::try_from(u64::from_le_bytes(length.try_into()?))?;
    Ok(rest.get(..length).context("the input was cut short")?.to_vec())
}

/// Runs `target` for `time` in this process, the corpus first. Prints how many inputs were run;
/// gives the exit code.
///
/// # Errors
/// `current` cannot be written.
pub fn child(target: &Target, time: Duration, seed: u64, current: &Path) -> Result<i32> {
    let file = File::create(current)?;
    let corpus: Vec<Vec<u8>> =
        corpus(target.name).into_iter().map(|(_, content)| content).collect();
    let mut mutator = Mutator::new(seed, corpus.clone(), target.dictionary);
    let executions = Arc::new(AtomicU64::new(0));
    watch(target.name, &executions);
    let begun = Instant::now();
    let mut seeds = corpus.into_iter();
    let mut buffer = Vec::new();
    while begun.elapsed() < time {
        let input = seeds.next().unwrap_or_else(|| mutator.input());
        buffer.clear();
        buffer.extend_from_slice(&(input.len() as u64).to_le_bytes());
        buffer.extend_from_slice(&input);
        file.write_all_at(&buffer, 0)?;
        // The panic's message has gone to standard error.
        if catch_unwind(AssertUnwindSafe(|| target.run(&input))).is_err() {
            println!("{}", executions.load(Ordering::Relaxed));
            return Ok(FOUND);
        }
        executions.fetch_add(1, Ordering::Relaxed);
    }
    println!("{}", executions.load(Ordering::Relaxed));
    Ok(0)
}

/// Ends the process when one input takes too long.
fn watch(target: &'static str, executions: &Arc<AtomicU64>) {
    let executions = Arc::clone(executions);
    std::thread::spawn(move || {
        let mut last = None;
        loop {
            let now = executions.load(Ordering::Relaxed);
            if last == Some(now) {
                eprintln!("{target}: one input runs for more than {} s", PATIENCE.as_secs());
                println!("{now}");
                std::process::exit(FOUND);
            }
            last = Some(now);
            std::thread::sleep(PATIENCE);
        }
    });
}

/// Runs the target once on a file.
///
/// # Errors
/// There is no such file.
pub fn reproduce(target: &Target, file: &Path) -> Result<()> {
    let input =
        std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    if catch_unwind(AssertUnwindSafe(|| target.run(&input))).is_err() {
        bail!("`{}` fails on {}", target.name, file.display());
    }
    Ok(())
}
