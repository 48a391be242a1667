//! The source of a guest's time: wall clock, monotonic clock and sleep of `wasi:clocks`.
//!
//! [`Services::with_clock`](super::Services::with_clock) replaces the clocks of this machine by
//! another source, which then sets the time that a run sees and how long it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;

/// A source of time.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Returns the time since 1970-01-01T00:00:00Z, for `wasi:clocks/wall-clock.now`.
    fn wall(&self) -> Duration;
    /// Returns the time since an arbitrary moment, for `wasi:clocks/monotonic-clock.now`. It never
    /// decreases. A guest gets the time since the start of its run.
    fn monotonic(&self) -> Duration;
    /// Returns the resolution of both clocks.
    fn resolution(&self) -> Duration;
    /// Returns a future that is ready when [`Clock::monotonic`] has grown by `wait`.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    begun: Instant,
}

impl SystemClock {
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

/// A clock for tests: it starts at a fixed time, and only sleeping moves it.
#[derive(Debug)]
pub struct FixedClock {
    start: Duration,
    slept: Arc<AtomicU64>,
}

impl FixedClock {
    /// Returns a clock that starts at `start`, since 1970.
    pub fn new(start: Duration) -> Self {
        Self { start, slept: Arc::default() }
    }
}

impl Clock for FixedClock {
    fn wall(&self) -> Duration {
        self.start + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.slept.load(Ordering::Relaxed))
    }

    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let slept = Arc::clone(&self.slept);
        Box::pin(async move {
            // Others run meanwhile, as with a real sleep.
            tokio::task::yield_now().await;
            slept.fetch_add(nanos, Ordering::Relaxed);
        })
    }
}
