//! `cargo xtask cross`: compiles hookrun for other platforms than this one, and runs the unit tests
//! for aarch64 Linux in an emulator. docs/platforms.md says what this shows.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo, repository, target_directory};

const LINUX: &str = "aarch64-unknown-linux-gnu";
const MACOS: &str = "aarch64-apple-darwin";
/// The linker for aarch64 Linux, from Debian's package `gcc-aarch64-linux-gnu`.
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Runs programs of aarch64 Linux. They are started through their loader, because with another
/// `-L` qemu redirects absolute paths, `/` among them, into that directory.
const EMULATOR: [&str; 6] = [
    "qemu-aarch64",
    "-L",
    "/",
    "/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1",
    "--library-path",
    "/usr/aarch64-linux-gnu/lib",
];
/// The program and its library crates.
const PACKAGES: [&str; 9] = [
    "hookrun",
    "hookrun-system",
    "hookrun-nix",
    "hookrun-config",
    "hookrun-queue",
    "hookrun-builders",
    "hookrun-capability",
    "hookrun-host",
    "hookrun-simulate",
];
/// The Python packages that compile C code for macOS, in the versions that were tested.
const ZIG: [&str; 2] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.1"];

/// A unit test that does not run in the emulator.
struct NotEmulated {
    test: &'static str,
    reason: &'static str,
}

const FAILED_EXEC: &str = "the emulator reports a failed exec as exit code 127";
const OWN_PROGRAM: &str = "a process cannot execute its own program without binfmt_misc";
/// The unit tests that do not run in the emulator. docs/platforms.md has the same table.
const NOT_EMULATED: &[NotEmulated] = &[
    NotEmulated {
        test: "bounded::tests::a_program_that_cannot_be_started_is_named",
        reason: FAILED_EXEC,
    },
    NotEmulated {
        test: "compile::tests::a_compiler_process_that_is_not_hookrun_is_no_fault_of_the_component",
        reason: OWN_PROGRAM,
    },
    NotEmulated {
        test: "contain::tests::a_child_that_cannot_be_started_is_named_with_the_reason",
        reason: FAILED_EXEC,
    },
    NotEmulated { test: "lock::tests::only_one_worker_holds_the_lock", reason: OWN_PROGRAM },
    NotEmulated { test: "mail::tests::what_sendmail_answers", reason: FAILED_EXEC },
    NotEmulated {
        test: "process::tests::a_program_that_cannot_be_started_is_named_with_the_reason",
        reason: FAILED_EXEC,
    },
    NotEmulated {
        test: "process::tests::the_arguments_of_this_process_are_known",
        reason: "the kernel shows the arguments of the emulator",
    },
];

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Check one platform only
    #[arg(long, value_enum)]
    only: Option<Platform>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Platform {
    /// Linux on aarch64: compile, link, run the unit tests
    Linux,
    /// macOS on aarch64: check the code
    Macos,
}

/// Installs what is missing, compiles, and runs the tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Cross)?;
    let wanted = |platform| options.only.is_none_or(|only| only == platform);
    if wanted(Platform::Linux) {
        linux()?;
    }
    if wanted(Platform::Macos) {
        macos()?;
    }
    Ok(())
}

/// Builds and tests for aarch64 Linux.
fn linux() -> Result<()> {
    machine::rust_target(LINUX)?;
    let cross = |subcommand: &str| {
        let mut command = cargo();
        command.args([subcommand, "--target", LINUX]).args(packages()).args(["--lib", "--bins"]);
        command
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", EMULATOR.join(" "));
        command
    };
    // `--tests` selects the features that the tests need, so that everything is compiled once.
    cross("build").arg("--tests").run()?;
    let [emulator, arguments @ ..] = EMULATOR;
    let program = target_directory()?.join(LINUX).join("debug/hookrun");
    Command::new(emulator).args(arguments).arg(program).arg("--version").run()?;

    let list = cross("test").args(["--quiet", "--", "--list"]).read()?;
    let known: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    if let Some(unknown) = NOT_EMULATED.iter().find(|unable| !known.contains(&unable.test)) {
        bail!("there is no test `{}`; correct NOT_EMULATED and docs/platforms.md", unknown.test);
    }
    let mut tests = cross("test");
    tests.args(["--no-fail-fast", "--", "--exact"]);
    tests.args(NOT_EMULATED.iter().flat_map(|unable| ["--skip", unable.test])).run()?;
    println!("{} unit tests did not run in the emulator:", NOT_EMULATED.len());
    for NotEmulated { test, reason } in NOT_EMULATED {
        println!("  {test}: {reason}");
    }
    Ok(())
}

fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().flat_map(|package| ["--package", package])
}

/// Checks the code for macOS. Linking needs Apple's SDK.
fn macos() -> Result<()> {
    machine::rust_target(MACOS)?;
    let programs = zig()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
    let mut clippy = Command::new(programs.join("cargo-zigbuild"));
    clippy.args(["clippy", "--target", MACOS]).args(packages());
    clippy.args(["--all-targets", "--", "-D", "warnings"]);
    clippy.env("PATH", std::env::join_paths(path)?).env("CARGO_PROFILE_DEV_DEBUG", "0");
    clippy.current_dir(repository()).run()
}

/// The directory of `cargo-zigbuild` and `zig`. They are installed once, below the target
/// directory.
fn zig() -> Result<PathBuf> {
    let place = target_directory()?.join("zig");
    let (installed, wanted) = (place.join("installed.txt"), ZIG.join("\n"));
    if !std::fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        Command::new("python3").args(["-m", "venv"]).arg(&place).run()?;
        Command::new(place.join("bin/pip")).args(["install", "--quiet"]).args(ZIG).run()?;
        std::fs::write(&installed, wanted)?;
    }
    Ok(place.join("bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/platforms.md");

    #[test]
    fn the_page_lists_the_tests_that_do_not_run_in_the_emulator() {
        let row = |unable: &NotEmulated| format!("| `{}` | {} |", unable.test, unable.reason);
        let expected: Vec<String> = NOT_EMULATED.iter().map(row).collect();
        let listed: Vec<&str> =
            PAGE.lines().filter(|line| line.starts_with("| `") && line.contains("::")).collect();
        assert_eq!(listed, expected);
    }
}
