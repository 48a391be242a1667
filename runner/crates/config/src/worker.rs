//! `[worker]`.

use std::time::Duration;

use super::KeyError;
use super::quantity::{duration, size};

/// The process that starts the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// A hook starts a detached worker when none runs.
    #[default]
    Spawn,
    /// A service runs `hookrun daemon`.
    Service,
    /// An administrator runs `hookrun drain`.
    None,
}

/// The priority of a background worker for processor and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Uses only resources that are idle.
    Idle,
    /// Gives priority to builds.
    #[default]
    Low,
    /// Keeps the priority of the process that starts it.
    Normal,
}

impl Priority {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Low => "low",
            Self::Normal => "normal",
        }
    }
}

/// Enough for the parts and the compressor of one large NAR.
const MIN_UPLOAD_MEMORY: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Worker {
    /// The process that starts the worker.
    pub start: Start,
    /// The priority of a background worker and its child processes.
    pub priority: Priority,
    /// Maximum number of tasks that run at the same time.
    pub concurrency: usize,
    /// Memory for the uploads of one process.
    #[serde(deserialize_with = "size")]
    pub upload_memory: u64,
    /// A worker started by a hook exits after this time without work.
    #[serde(deserialize_with = "duration")]
    pub idle_exit: Duration,
    /// How long completed events and their attempts stay in the journal.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
    /// Maximum time for which outputs of unfinished events are kept from garbage collection.
    #[serde(deserialize_with = "duration")]
    pub roots_max_age: Duration,
    /// Maximum total size of these outputs in bytes; the oldest are released first.
    #[serde(deserialize_with = "size")]
    pub roots_max_size: u64,
    /// Maximum number of unfinished events of one build user in the journal.
    pub max_events_per_user: u64,
    /// Maximum total size of the unfinished events of one build user.
    #[serde(deserialize_with = "size")]
    pub max_bytes_per_user: u64,
    /// The user that guests run as if the worker is root.
    pub user: Option<String>,
    /// Refuse to run plugins on a kernel that lacks a part of the sandbox.
    pub require_sandbox: bool,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            start: Start::default(),
            priority: Priority::default(),
            concurrency: 4,
            upload_memory: 256 << 20,
            idle_exit: Duration::from_secs(10),
            keep: Duration::from_hours(30 * 24),
            roots_max_age: Duration::from_hours(14 * 24),
            roots_max_size: 100 << 30,
            max_events_per_user: 10_000,
            max_bytes_per_user: 256 << 20,
            user: None,
            require_sandbox: false,
        }
    }
}

impl Worker {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        if self.concurrency == 0 {
            return Err(KeyError::new(
                &["concurrency"],
                "`concurrency` must be at least 1; write `concurrency = 4`",
            ));
        }
        if self.upload_memory < MIN_UPLOAD_MEMORY {
            return Err(KeyError::new(
                &["upload-memory"],
                "`upload-memory` must be at least 64 MiB; write `upload-memory = \"256MiB\"`",
            ));
        }
        Ok(())
    }
}
