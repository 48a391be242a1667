//! The source of a guest's time: wall clock, monotonic clock and sleep of `wasi:clocks`.
//!
//! Called by the choke point only. Another source takes the place of this machine's by
//! [`Services::with_clock`](super::Services::with_clock), which then decides what time a run sees
//! and how long it sleeps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;

/// A source of time.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Since 1970-01-01T00:00:00Z, for `wasi:clocks/wall-clock.now`.
    fn wall(&self) -> Duration;
    /// Since any moment, never less than before, for `wasi:clocks/monotonic-clock.now`. A guest
    /// gets the time since the start of its run.
    fn monotonic(&self) -> Duration;
    /// How fine both are.
    fn resolution(&self) -> Duration;
    /// Ready when [`Clock::monotonic`] has grown by `wait`.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    begun: Instant,
}

impl SystemClock {
    /// The clocks of this machine.
    pub fn new() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Duration {
        // A clock before 1970 counts as 1970.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        self.begun.elapsed()
    }

    fn resolution(&self) -> Duration {
        // clock_getres(2) of Linux's high-resolution timers.
        Duration::from_nanos(1)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(wait))
    }
}
