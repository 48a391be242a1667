//! A command that ran: what it said, and expectations about it that show all of it when they fail.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

/// A command that ran.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs the command to its end.
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

    /// It returned 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_exit(0)
    }

    /// It did not return 0.
    #[track_caller]
    pub fn expect_failure(self) -> Self {
        assert!(!self.status.success(), "should have failed: {}", self.account());
        self
    }

    /// It returned this.
    #[track_caller]
    pub fn expect_exit(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "wrong exit code: {}", self.account());
        self
    }

    /// Its standard error has this in it.
    #[track_caller]
    pub fn expect_stderr(self, part: &str) -> Self {
        assert!(
            self.stderr.contains(part),
            "`{part}` is not in the standard error: {}",
            self.account()
        );
        self
    }

    /// Its standard output has this in it.
    #[track_caller]
    pub fn expect_stdout(self, part: &str) -> Self {
        assert!(
            self.stdout.contains(part),
            "`{part}` is not in the standard output: {}",
            self.account()
        );
        self
    }

    /// Neither stream has this in it.
    #[track_caller]
    pub fn expect_silent_about(self, part: &str) -> Self {
        assert!(
            !self.stderr.contains(part) && !self.stdout.contains(part),
            "`{part}` was said: {}",
            self.account()
        );
        self
    }

    /// The store paths it printed, one a line, as `nix-build` does.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.stdout.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect()
    }

    /// The one store path it printed.
    #[track_caller]
    pub fn path(&self) -> PathBuf {
        match self.paths().as_slice() {
            [path] => path.clone(),
            _ => panic!("should have printed one store path: {}", self.account()),
        }
    }

    /// All of it, for a message.
    pub fn account(&self) -> String {
        format!(
            "`{}` ({})\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}
