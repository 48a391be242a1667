//! A command that ran, and expectations about it whose failures show all of its output.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

/// A command that ran.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// The exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs the command and waits until it ends.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => panic!("`{line}` does not start: {error}"),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            command: line,
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Fails unless the exit code is 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_exit(0)
    }

    /// Fails if the exit code is 0.
    #[track_caller]
    pub fn expect_failure(self) -> Self {
        assert!(!self.status.success(), "should have failed: {}", self.account());
        self
    }

    /// Fails unless this is the exit code.
    #[track_caller]
    pub fn expect_exit(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "wrong exit code: {}", self.account());
        self
    }

    /// Fails unless the standard error contains this.
    #[track_caller]
    pub fn expect_stderr(self, part: &str) -> Self {
        assert!(
            self.stderr.contains(part),
            "`{part}` is not in the standard error: {}",
            self.account()
        );
        self
    }

    /// Fails unless the standard output contains this.
    #[track_caller]
    pub fn expect_stdout(self, part: &str) -> Self {
        assert!(
            self.stdout.contains(part),
            "`{part}` is not in the standard output: {}",
            self.account()
        );
        self
    }

    /// Fails if the standard output or the standard error contains this.
    #[track_caller]
    pub fn expect_silent_about(self, part: &str) -> Self {
        assert!(
            !self.stderr.contains(part) && !self.stdout.contains(part),
            "`{part}` should not be in the output: {}",
            self.account()
        );
        self
    }

    /// Returns the store paths that it printed, one in each line, as `nix-build` does.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.stdout.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
    }

    /// Returns the only store path that it printed.
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        match self.paths().as_slice() {
            [path] => path.clone(),
            _ => panic!("should have printed one store path: {}", self.account()),
        }
    }

    /// Returns the command with its status and output, for a message.
    pub fn account(&self) -> String {
        format!(
            "`{}` ({})\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}
