//! The worker's clock: time and waiting. Tests replace it to simulate a day in a moment.

use std::time::Duration;

use futures_util::future::BoxFuture;

/// A clock. The worker waits for one time at once.
pub trait Clock: Send + Sync {
    /// Returns the time in milliseconds since 1970. It may go backwards when the clock is set.
    fn now_ms(&self) -> u64;

    /// Waits for `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        hookrun_nix::event::now_ms()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
