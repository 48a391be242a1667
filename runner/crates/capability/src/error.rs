//! The error of a host call. Host calls return it as the `error` record of `hookrun:host/types`.

use std::time::Duration;

/// The kinds of `hookrun:host/types.error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No grant covers the call.
    Denied,
    /// A limit was reached.
    Limit,
    /// The requested object does not exist.
    NotFound,
    /// An argument is malformed.
    Invalid,
    /// A retry may help.
    Transient,
    /// A retry helps after the operator of this machine has fixed something: credentials,
    /// certificates, the clock, a permission at the service. The task is kept and runs again when
    /// configuration or secrets change, and every few minutes.
    Refused,
    /// A retry cannot help.
    Permanent,
}

impl ErrorKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
            Self::Transient => "transient",
            Self::Refused => "refused",
            Self::Permanent => "permanent",
        }
    }
}

/// The reason why a host call returned no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{message}")]
#[serde(rename_all = "kebab-case")]
pub struct CapabilityError {
    pub kind: ErrorKind,
    /// The attempted action, its object and the fix. It never contains a secret.
    pub message: String,
    /// The delay that the server requested.
    pub retry_after: Option<Duration>,
}

impl CapabilityError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, message)
    }

    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// Returns an error that the operator has to fix; see [`ErrorKind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Permanent, message)
    }

    /// Sets the minimum delay before a retry.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}
