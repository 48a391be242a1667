//! `hookrun-fuzz`: the fuzz targets without libFuzzer. See [`hookrun_fuzz::drive`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use hookrun_fuzz::{TARGETS, Target, corpus, directory, drive};

/// Runs fuzz targets with mutations of their corpus, not guided by coverage.
#[derive(Parser)]
enum Task {
    /// Run targets, each for a bounded time; exit code 1 if one found something.
    All {
        /// Seconds for each target.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// The same seed makes the same inputs; by default the time.
        #[arg(long)]
        seed: Option<u64>,
        /// Where inputs go that were found; by default `fuzz/artifacts`.
        #[arg(long)]
        artifacts: Option<PathBuf>,
        /// Which; by default all.
        targets: Vec<String>,
    },
    /// Run one input of a target.
    Reproduce {
        /// Which target.
        target: String,
        /// The input.
        file: PathBuf,
    },
    /// What `all` starts.
    #[command(hide = true)]
    Run {
        target: String,
        #[arg(long)]
        milliseconds: u64,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        current: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn find(name: &str) -> Result<Target> {
    let known = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    Target::find(name).with_context(|| format!("there is no target `{name}`; known: {}", known()))
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::All { seconds, seed, artifacts, targets } => {
            let targets = match targets.as_slice() {
                [] => TARGETS.to_vec(),
                names => names.iter().map(|name| find(name)).collect::<Result<_>>()?,
            };
            let seed = seed.unwrap_or_else(now);
            let artifacts = artifacts.unwrap_or_else(|| directory().join("artifacts"));
            all(&targets, Duration::from_secs(seconds), seed, &artifacts)
        }
        Task::Reproduce { target, file } => {
            drive::reproduce(&find(&target)?, &file)?;
            println!("`{target}` takes {}", file.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Run { target, milliseconds, seed, current } => {
            let code =
                drive::child(&find(&target)?, Duration::from_millis(milliseconds), seed, &current)?;
            // At once: a watching thread may be left.
            std::process::exit(code)
        }
    }
}

fn all(targets: &[Target], time: Duration, seed: u64, artifacts: &Path) -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    println!(
        "seeded mutations of the corpus, not guided by coverage; seed {seed}, {} s each",
        time.as_secs()
    );
    let mut findings = 0;
    for target in targets {
        let seeds = corpus(target.name).len();
        let outcome = drive::parent(&program, target, time, seed, artifacts)?;
        match &outcome.found {
            None => println!(
                "{:<12} {:>9} executions, {seeds} seeds, nothing found",
                target.name, outcome.executions
            ),
            Some(file) => {
                findings += 1;
                println!(
                    "{:<12} {:>9} executions, {seeds} seeds, FOUND {}",
                    target.name,
                    outcome.executions,
                    file.display()
                );
                println!(
                    "             again: hookrun-fuzz reproduce {} {}",
                    target.name,
                    file.display()
                );
            }
        }
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A seed that nobody chose.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since
        .map_or(0, |time| u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap_or_default())
}
