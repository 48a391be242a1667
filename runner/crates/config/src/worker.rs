//! `[worker]` and `[builders]`.

use std::time::Duration;

use super::resources::Resources;

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

/// How much of processor and disk the worker leaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// It works when nobody else wants to.
    Idle,
    /// Builds come first.
    #[default]
    Low,
    /// As it was started.
    Normal,
}

impl Priority {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Low => "low",
            Self::Normal => "normal",
        }
    }
}

/// `[worker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Who starts it.
    pub start: Start,
    /// Beside builds, for a worker in the background and all that it starts.
    pub priority: Priority,
    /// Tasks at once.
    pub concurrency: usize,
    /// A spawned worker leaves after this long without work.
    pub idle_exit: Duration,
    /// Ended events and their attempts stay in the journal for so long.
    pub keep: Duration,
    /// What an event's tasks wait for is kept from the garbage collector for so long at most.
    pub roots_max_age: Duration,
    /// And so many bytes of outputs at most, the oldest going first.
    pub roots_max_size: u64,
    /// Events that one build user may have in the journal.
    pub max_events_per_user: u64,
    /// Their bytes.
    pub max_bytes_per_user: u64,
    /// The user that guests run as where the worker is root.
    pub user: Option<String>,
    /// Is a kernel on which the sandbox is not whole an error?
    pub require_sandbox: bool,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            start: Start::default(),
            priority: Priority::default(),
            concurrency: 4,
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

/// `[builders]`: how a chosen machine is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builders {
    /// How long one machine may take to accept before the next is tried.
    pub connect_timeout: Duration,
    /// How long a machine that failed is left alone at first; twice as long after each further
    /// failure in a row.
    pub retry_after: Duration,
    /// May Nix be told that a build is taken before its machine has answered, or while it waits for
    /// a slot?
    pub early_accept: bool,
    /// Builds that may wait in hookrun for a slot; for each Nix keeps a process and some file
    /// descriptors.
    pub max_waiting: u32,
    /// May builds on one machine share an ssh connection?
    pub share_connections: bool,
    /// What builds take besides a slot.
    pub resources: Resources,
}

impl Default for Builders {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            retry_after: Duration::from_secs(15),
            early_accept: true,
            max_waiting: 64,
            share_connections: true,
            resources: Resources::default(),
        }
    }
}
