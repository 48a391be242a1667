//! Why a host call gave no result.

use std::time::Duration;

use crate::bindings::imports::hookrun::host::types;

/// Why a host call gave no result. Converts into a [`Failure`](crate::Failure):
/// [`ErrorKind::Transient`] is worth a retry, the rest is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What was tried, on what, and the line that would change it.
    pub message: String,
    /// What the other side asked to wait.
    pub retry_after: Option<Duration>,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No grant covers the call.
    Denied,
    /// A limit was reached.
    Limit,
    /// There is no such thing.
    NotFound,
    /// An argument is malformed.
    Invalid,
    /// A retry may help.
    Transient,
    /// The operator has to fix something, such as credentials. Return it as any other failure: the
    /// host keeps the task and runs it again after that.
    Refused,
    /// A retry cannot help; also every kind that this release does not know.
    Permanent,
}

impl Error {
    /// An error that a retry cannot help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Permanent, message: message.into(), retry_after: None }
    }

    /// Whether a retry may help.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// The same, with what was being done in front: `context: message`.
    #[must_use]
    pub fn context(self, context: impl std::fmt::Display) -> Self {
        Self { message: format!("{context}: {}", self.message), ..self }
    }

    /// What a host call gives where there is no host: in a native unit test.
    pub(crate) fn no_host(function: &str) -> Self {
        Self::permanent(format!("`{function}` works only inside hookrun; this is a native build"))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// So that `?` works in [`BuilderSelection::select`](crate::BuilderSelection::select).
impl From<Error> for String {
    fn from(error: Error) -> Self {
        error.message
    }
}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        let kind = match error.kind.as_str() {
            "denied" => ErrorKind::Denied,
            "limit" => ErrorKind::Limit,
            "not-found" => ErrorKind::NotFound,
            "invalid" => ErrorKind::Invalid,
            "transient" => ErrorKind::Transient,
            "refused" => ErrorKind::Refused,
            _ => ErrorKind::Permanent,
        };
        Self {
            kind,
            message: error.message,
            retry_after: error.retry_after_ms.map(Duration::from_millis),
        }
    }
}

/// Calls the host; gives [`Error::no_host`] in a native build, where there is none.
macro_rules! host {
    ($name:literal, $call:expr) => {
        if cfg!(target_arch = "wasm32") {
            $call.map_err($crate::Error::from)
        } else {
            Err($crate::Error::no_host($name))
        }
    };
}
pub(crate) use host;
