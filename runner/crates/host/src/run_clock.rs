//! The time of one run: its deadline and the limit that sets it.
//!
//! Wall time passes in the guest and in its host calls. The time of calls that wait for a service
//! (object stores, mail) is counted separately ([`Limit::StreamTime`]) and postpones the deadline
//! by as much, because their duration depends on the size of store paths and on the service, not on
//! the plugin. A builder selection has no such allowance, and a gate has it only if `stream-time`
//! is set, because Nix is blocked meanwhile.
//!
//! [`RunState::call`](super::host_call::RunState::call) ends host calls at [`RunClock::deadline`],
//! and [`super::run`] ends the guest at [`RunClock::expired`]. Each store has its own clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use hookrun_config::{Limit, Limits};

/// Replaces durations that are too long for the machine's clock.
const FAR: Duration = Duration::from_hours(24 * 365 * 10);

/// The clock of one run. Its clones share the state.
#[derive(Debug, Clone)]
pub(crate) struct RunClock(Arc<Mutex<Times>>);

#[derive(Debug)]
struct Times {
    /// The limit that applies outside of streams.
    limit: Limit,
    ends: Instant,
    /// The remaining time of streams. `None` means that it is not counted separately.
    streams: Option<Duration>,
    /// When the open stream was opened.
    stream: Option<Instant>,
}

/// The time at which a run ends, and the limit that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub at: Instant,
    pub limit: Limit,
}

/// The arithmetic, which does not read a clock.
impl Times {
    fn start(limits: &Limits, limit: Limit, apart: bool, now: Instant) -> Self {
        let streams = apart.then(|| limits.time(Limit::StreamTime));
        Self { limit, ends: after(now, limits.time(limit)), streams, stream: None }
    }

    fn deadline(&self) -> Deadline {
        match (self.stream, self.streams) {
            (Some(since), Some(left)) => {
                Deadline { at: after(since, left), limit: Limit::StreamTime }
            }
            _ => Deadline { at: self.ends, limit: self.limit },
        }
    }

    fn open_stream(&mut self, now: Instant) {
        self.stream = Some(now);
    }

    fn close_stream(&mut self, now: Instant) {
        let Some(since) = self.stream.take() else { return };
        let took = now.saturating_duration_since(since);
        if let Some(left) = &mut self.streams {
            *left = left.saturating_sub(took);
            self.ends = after(self.ends, took);
        }
    }
}

impl RunClock {
    /// Starts the clock of a run that `limit` ends. With `apart`, the time that calls wait for
    /// services is counted separately.
    pub(crate) fn start(limits: &Limits, limit: Limit, apart: bool) -> Self {
        Self(Arc::new(Mutex::new(Times::start(limits, limit, apart, Instant::now()))))
    }

    /// Returns the current deadline of the run.
    pub(crate) fn deadline(&self) -> Deadline {
        self.lock().deadline()
    }

    /// Waits until the run is over, and returns the limit that ended it.
    pub(crate) async fn expired(&self) -> Limit {
        loop {
            let Deadline { at, limit } = self.deadline();
            tokio::time::sleep_until(at).await;
            // A stream may have postponed the deadline meanwhile.
            if self.deadline().at <= at {
                return limit;
            }
        }
    }

    /// Begins to wait for a service. The wait ends when the returned value is dropped.
    pub(crate) fn wait(&self) -> Waiting {
        self.lock().open_stream(Instant::now());
        Waiting(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits for a service.
#[derive(Debug)]
pub(crate) struct Waiting(RunClock);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().close_stream(Instant::now());
    }
}

fn after(begin: Instant, wait: Duration) -> Instant {
    begin.checked_add(wait.min(FAR)).unwrap_or(begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn limits() -> Limits {
        let mut limits = Limits::default();
        limits.set(Limit::WallTime, 100);
        limits.set(Limit::StreamTime, 1000);
        limits.set(Limit::SelectionTime, 50);
        limits
    }

    #[test]
    fn streams_have_their_own_time_and_move_the_end() {
        let begun = Instant::now();
        let mut times = Times::start(&limits(), Limit::WallTime, true, begun);
        let mut now = begun + ms(60);
        for (took, left) in [(700, 1000), (200, 300)] {
            times.open_stream(now);
            assert_eq!(times.deadline(), Deadline { at: now + ms(left), limit: Limit::StreamTime });
            now += ms(took);
            times.close_stream(now);
        }
        assert_eq!(
            times.deadline(),
            Deadline { at: begun + ms(100 + 700 + 200), limit: Limit::WallTime }
        );
    }

    #[test]
    fn no_stream_time_is_left_after_a_stream_that_took_all() {
        let begun = Instant::now();
        let mut times = Times::start(&limits(), Limit::WallTime, true, begun);
        times.open_stream(begun);
        times.close_stream(begun + ms(2000));
        times.open_stream(begun + ms(2000));
        assert_eq!(times.deadline(), Deadline { at: begun + ms(2000), limit: Limit::StreamTime });
    }

    #[test]
    fn a_selection_has_no_time_for_streams() {
        let begun = Instant::now();
        let mut times = Times::start(&limits(), Limit::SelectionTime, false, begun);
        let deadline = Deadline { at: begun + ms(50), limit: Limit::SelectionTime };
        times.open_stream(begun + ms(10));
        assert_eq!(times.deadline(), deadline);
        times.close_stream(begun + ms(30));
        assert_eq!(times.deadline(), deadline);
    }

    #[tokio::test]
    async fn the_longest_limits_are_valid_and_the_shortest_expire() {
        let mut limits = limits();
        limits.set(Limit::WallTime, u64::MAX);
        limits.set(Limit::StreamTime, u64::MAX);
        let clock = RunClock::start(&limits, Limit::WallTime, true);
        let waiting = clock.wait();
        assert!(clock.deadline().at > Instant::now() + Duration::from_hours(24));
        drop(waiting);
        assert_eq!(
            RunClock::start(&limits, Limit::SelectionTime, false).expired().await,
            Limit::SelectionTime
        );
    }
}
