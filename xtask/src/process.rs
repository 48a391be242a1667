//! Runs commands: prints each before it runs, and passes on the exit code of one that fails.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result};

/// A command that ran and failed.
#[derive(Debug)]
pub(crate) struct Failed {
    line: String,
    status: ExitStatus,
}

impl Failed {
    /// Its exit code, or 1 if a signal ended it.
    pub(crate) fn exit_code(&self) -> ExitCode {
        self.status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` failed ({})", self.line, self.status)
    }
}

impl std::error::Error for Failed {}

/// Ways to run a command.
pub(crate) trait CommandExt {
    /// Prints the command line and runs it with this process's streams. Fails if the command fails.
    fn run(&mut self) -> Result<()>;
    /// Runs it silently and returns its standard output. Fails if the command fails.
    fn read(&mut self) -> Result<String>;
}

impl CommandExt for Command {
    fn run(&mut self) -> Result<()> {
        let line = line(self);
        eprintln!("$ {line}");
        let status = self.status().with_context(|| format!("`{line}` does not start"))?;
        if status.success() { Ok(()) } else { Err(Failed { line, status }.into()) }
    }

    fn read(&mut self) -> Result<String> {
        let line = line(self);
        let output = self.output().with_context(|| format!("`{line}` does not start"))?;
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            return Err(Failed { line, status: output.status }.into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Variables that `cargo run` sets for this program. Build scripts that read them (such as that of
/// `ring`) would run again after each change between plain cargo and xtask, and everything that
/// depends on them would be compiled again.
const OF_THIS_PACKAGE: [&str; 5] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_PRIMARY_PACKAGE",
];

/// Returns a command that runs `cargo` in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| OF_THIS_PACKAGE.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
    }
    command.current_dir(repository());
    command
}

/// Builds the whole workspace, so that crates are not compiled again with other features.
pub(crate) fn build_workspace() -> Result<()> {
    cargo().args(["build", "--workspace"]).run()
}

/// Builds the two programs and nothing else.
pub(crate) fn build_programs() -> Result<()> {
    cargo().args(["build", "--package", "hookrun"]).run()
}

/// Returns the directory of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns the target directory: this program is `debug/xtask` in it.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where xtask is")?;
    let target = program.parent().and_then(Path::parent);
    target.map(Path::to_owned).context("xtask is in no target directory; run it as `cargo xtask`")
}
