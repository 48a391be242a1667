//! Errors of host calls.

use std::time::Duration;

use crate::bindings::imports::hookrun::host::types;

/// The error of a host call. It converts into a [`Failure`](crate::Failure), which is transient if
/// the kind is [`ErrorKind::Transient`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The kind of failure.
    pub kind: ErrorKind,
    /// The operation, its object, and the configuration line to change.
    pub message: String,
    /// The time that the service asks to wait before the next attempt.
    pub retry_after: Option<Duration>,
}

/// The kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No grant covers the call.
    Denied,
    /// A limit was reached.
    Limit,
    /// The named object does not exist.
    NotFound,
    /// An argument is malformed.
    Invalid,
    /// A retry may help.
    Transient,
    /// The operator has to fix something, such as credentials. Return it like any other failure:
    /// the host keeps the task, and runs it again after the operator's change.
    Refused,
    /// A retry cannot help. Kinds that this version of the SDK does not know are also mapped to
    /// this one.
    Permanent,
}

impl Error {
    /// Returns an error after which a retry cannot help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Permanent, message: message.into(), retry_after: None }
    }

    /// Returns whether a retry may help.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }

    /// Returns the error with a context before its message: `context: message`.
    #[must_use]
    pub fn context(self, context: impl std::fmt::Display) -> Self {
        Self { message: format!("{context}: {}", self.message), ..self }
    }

    /// Returns the error of a host call in a native unit test, where there is no host.
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

/// Allows `?` on a value that is read from, or written as, JSON.
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::permanent(format!("JSON: {error}"))
    }
}

/// Allows `?` in [`BuilderSelection::select`](crate::BuilderSelection::select).
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

/// Calls the host. In a native build calls the host of the test ([`crate::testing`]) with the
/// function in the third place; without it, or without a host, returns [`Error::no_host`].
macro_rules! host {
    ($name:literal, $call:expr) => {
        $crate::error::host!($name, $call, |_| Err($crate::Error::no_host($name)))
    };
    ($name:literal, $call:expr, $native:expr) => {
        if cfg!(target_arch = "wasm32") {
            $call.map_err($crate::Error::from)
        } else {
            $crate::testing::call($name, $native)
        }
    };
}
pub(crate) use host;
