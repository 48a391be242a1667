//! `cargo xtask`: what people and CI do with this repository, one command each. Prepares the
//! machine where that can be done (Debian, root) and names the exact command where it cannot.

mod bench;
mod bench_builders;
mod checks;
mod crash;
mod dist;
mod fuzz;
mod machine;
mod newer_nix;
mod process;
mod test;
mod width;

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Parser;

use machine::Need;
use process::{CommandExt as _, Failed};

/// Work on this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Show hookrun at work on real Nix, in a private store. Installs what is missing, builds, runs
    /// `hookrun demo`.
    Demo {
        /// For `hookrun demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run all tests, the end-to-end ones with real Nix among them.
    Test {
        /// For the test runner, such as a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, lints, documentation, and licences and advisories of
    /// dependencies.
    #[command(visible_alias = "ci")]
    Checks,
    /// Fuzz: each target for a bounded time. Exit code 1 if one finds something; what it found is
    /// in `fuzz/artifacts`.
    Fuzz(fuzz::Options),
    /// The crash test in its long form: hooks and workers killed at every boundary and at random.
    Crash(crash::Options),
    /// Run the demo and the tests with the Nix of a later Debian, in a root of its own that is made
    /// once. Needs root and debootstrap.
    NewerNix(newer_nix::Options),
    /// Measure a release build: the thin hook and an inline plugin against a shell and a disk.
    Bench(bench::Options),
    /// Measure builder selection with real Nix, beside Nix's own hook. Needs root.
    BenchBuilders(bench_builders::Options),
    /// Make a release: binary, shell completions and man pages in `target/dist`.
    Dist,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // A command that failed has said why; its code is handed on.
            error.downcast_ref::<Failed>().map_or(ExitCode::FAILURE, Failed::exit_code)
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { arguments } => {
            machine::prepare(Need::Nix)?;
            process::build_workspace()?;
            Command::new(process::target_directory()?.join("debug/hookrun"))
                .arg("demo")
                .args(arguments)
                .run()
        }
        Task::Test { arguments } => test::run(&arguments),
        Task::Checks => checks::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Crash(options) => crash::run(&options),
        Task::NewerNix(options) => newer_nix::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BenchBuilders(options) => bench_builders::run(&options),
        Task::Dist => dist::run(),
    }
}
