//! `cargo xtask`: the tasks of developers and CI, one command each. Installs what is missing where
//! that is possible (Debian, root), otherwise names the command that installs it.

mod author_languages;
mod bench;
mod bench_builders;
mod checks;
mod crash;
mod cross;
mod dist;
mod fuzz;
mod machine;
mod module_heads;
mod newer_nix;
mod process;
mod s3_servers;
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
    /// Demonstrate hookrun with real Nix in a private store. Installs what is missing, builds, and
    /// runs `hookrun demo`.
    Demo {
        /// For `hookrun demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run all tests, including the end-to-end tests with real Nix.
    Test {
        /// For the test runner, such as a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, lints, documentation, and licences and advisories of
    /// dependencies.
    #[command(visible_alias = "ci")]
    Checks,
    /// Fuzz each target for a limited time. Exits with 1 if one finds something, and writes the
    /// input to `fuzz/artifacts`.
    Fuzz(fuzz::Options),
    /// Run the long crash test: kill hooks and workers at every boundary and at random.
    Crash(crash::Options),
    /// Test object stores against moto, or against another S3 server.
    S3Servers(s3_servers::Options),
    /// Compile for aarch64 Linux and macOS, and run unit tests for aarch64 Linux in an emulator.
    Cross(cross::Options),
    /// Run the demo and the tests with the Nix of a later Debian, in a separate root directory that
    /// is created once. Needs root and debootstrap.
    NewerNix(newer_nix::Options),
    /// Measure a release build: the thin hook and an inline plugin against a shell and a disk.
    Bench(bench::Options),
    /// Measure builder selection with real Nix, beside Nix's own hook. Needs root.
    BenchBuilders(bench_builders::Options),
    /// Generate plugins in JavaScript and Python, and build and test them with the tools of their
    /// language. Needs node, npm, python3 and make, and downloads packages.
    AuthorLanguages,
    /// Make a release: binary, shell completions and man pages in `target/dist`.
    Dist,
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // A command that failed has reported why. Its exit code is passed on.
            error.downcast_ref::<Failed>().map_or(ExitCode::FAILURE, Failed::exit_code)
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { arguments } => {
            machine::prepare(Need::Nix)?;
            process::build_programs()?;
            Command::new(process::target_directory()?.join("debug/hookrun"))
                .arg("demo")
                .args(arguments)
                .run()
        }
        Task::Test { arguments } => test::run(&arguments),
        Task::Checks => checks::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Crash(options) => crash::run(&options),
        Task::S3Servers(options) => s3_servers::run(&options),
        Task::Cross(options) => cross::run(&options),
        Task::NewerNix(options) => newer_nix::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::BenchBuilders(options) => bench_builders::run(&options),
        Task::AuthorLanguages => author_languages::run(),
        Task::Dist => dist::run(),
    }
}
