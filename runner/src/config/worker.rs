//! `[worker]` and `[builders]`.

use std::time::Duration;

/// Who starts the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// A hook starts a detached worker when none runs.
    #[default]
    Spawn,
    /// A service runs `hookrun daemon`.
    Service,
    /// Somebody runs `hookrun drain`.
    None,
}

/// `[worker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Who starts it.
    pub start: Start,
    /// Tasks at once.
    pub concurrency: usize,
    /// A spawned worker leaves after this long without work.
    pub idle_exit: Duration,
    /// The user to drop to before guest code is mapped.
    pub user: Option<String>,
}

impl Default for Worker {
    fn default() -> Self {
        Self { start: Start::default(), concurrency: 4, idle_exit: Duration::from_secs(10), user: None }
    }
}

/// `[builders]`: how a chosen machine is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builders {
    /// How long one machine may take to accept before the next is tried.
    pub connect_timeout: Duration,
    /// How long a machine that failed is left alone.
    pub retry_after: Duration,
}

impl Default for Builders {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(10), retry_after: Duration::from_mins(1) }
    }
}
