//! The result of a run.

use std::fmt::Display;
use std::time::Duration;

use crate::Error;
use crate::bindings::diff::exports::hookrun::diff::diff;
use crate::bindings::post_build::exports::hookrun::post_build::post_build;

/// The result of a successful run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// One sentence, shown by `hookrun log`.
    pub message: String,
    /// Values by name, for programs.
    pub details: Vec<(String, String)>,
}

impl Outcome {
    /// Returns an outcome with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), details: Vec::new() }
    }

    /// Adds a value for programs.
    #[must_use]
    pub fn detail(mut self, key: impl Into<String>, value: impl Display) -> Self {
        self.details.push((key.into(), value.to_string()));
        self
    }
}

/// The reason why a run failed. [`Error`] converts into it, so `?` works in a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One sentence, shown by `hookrun log`.
    pub message: String,
    /// Whether a retry may help.
    pub transient: bool,
    /// The shortest time before the next attempt.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Returns a failure after which a retry cannot help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: false, retry_after: None }
    }

    /// Returns a failure after which a retry may help.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), transient: true, retry_after: None }
    }

    /// Sets the shortest time before the next attempt.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let transient = error.is_transient();
        Self { message: error.message, transient, retry_after: error.retry_after }
    }
}

/// Allows `?` on a value that is read from, or written as, JSON.
impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Error::from(error).into()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

macro_rules! into_wit {
    ($($wit:ident),+) => {$(
        impl From<Outcome> for $wit::Outcome {
            fn from(Outcome { message, details }: Outcome) -> Self {
                Self { message, details }
            }
        }

        impl From<Failure> for $wit::Failure {
            fn from(Failure { message, transient, retry_after }: Failure) -> Self {
                Self { message, transient, retry_after_ms: retry_after.map(milliseconds) }
            }
        }
    )+};
}
into_wit!(post_build, diff);
