//! The worker's clock: time and waiting. A test replaces it to let a day pass at once.

use std::time::Duration;

use futures_util::future::BoxFuture;

/// A clock. The worker waits for one thing at a time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970. May go backwards: somebody may set it.
    fn now_ms(&self) -> u64;

    /// Ready after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clock.
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
