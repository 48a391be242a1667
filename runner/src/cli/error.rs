//! Errors of commands: an exit code, and one line that ends with the fix.

use hookrun_config::ConfigError;
use hookrun_nix::exit_code::Exit;

/// The error of a command.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// The chain of causes. The outermost one names the operation.
    pub source: anyhow::Error,
}

impl CliError {
    /// Returns an error of the environment: no Nix, no permission, no space.
    pub fn environment(source: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Environment, source: source.into() }
    }

    /// Returns an error in the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, source: anyhow::Error::msg(message.into()) }
    }

    /// Returns an error in the configuration.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { exit: Exit::Configuration, source: anyhow::Error::msg(message.into()) }
    }

    /// Returns an error that is a defect of hookrun.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Internal, source: source.into() }
    }
}

impl std::fmt::Display for CliError {
    /// Writes one line: the causes joined by colons, without those that the preceding text already
    /// contains. Line breaks are replaced.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        for cause in self.source.chain() {
            let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            if !text.contains(&cause) {
                let joint = if text.is_empty() { "" } else { ": " };
                text.push_str(joint);
                text.push_str(&cause);
            }
        }
        f.write_str(&text)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self { exit: Exit::Configuration, source: error.into() }
    }
}

impl CliError {
    /// Returns whether the reader of the output has exited, as `head` does. This is not an error.
    pub fn is_broken_pipe(&self) -> bool {
        self.source
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::environment(error)
    }
}
