//! The time of one run: when it has to end, and by which limit.
//!
//! Wall time passes in the guest and in its host calls; the time of calls that wait for a service
//! (object stores, mail) is counted apart ([`Limit::StreamTime`]) and moves the end of the run by
//! as much, because their duration depends on the size of store paths and on the service, not on
//! the plugin. A builder selection has no such allowance, and a gate only if `stream-time` is set
//! for it: Nix is blocked meanwhile.
//!
//! The choke point ends host calls at [`RunClock::deadline`], and [`super::run`] ends the guest at
//! [`RunClock::expired`]. Each store has a clock of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use hookrun_config::{Limit, Limits};

/// Stands for times too far away for the machine's clock: longer than any machine runs.
const FAR: Duration = Duration::from_hours(24 * 365 * 10);

/// The clock of one run. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct RunClock(Arc<Mutex<Times>>);

#[derive(Debug)]
struct Times {
    /// Ends the run outside of streams.
    limit: Limit,
    ends: Instant,
    /// What streams may still take; none: their time is not apart.
    streams: Option<Duration>,
    /// When the stream that is open was opened.
    stream: Option<Instant>,
}

/// When a run ends if nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub at: Instant,
    pub limit: Limit,
}

/// The arithmetic, without a clock.
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
    /// The clock of a run that begins now and ends by `limit`; `apart`: the time of waiting for
    /// object stores is counted apart.
    pub(crate) fn start(limits: &Limits, limit: Limit, apart: bool) -> Self {
        Self(Arc::new(Mutex::new(Times::start(limits, limit, apart, Instant::now()))))
    }

    /// When the run ends as things stand.
    pub(crate) fn deadline(&self) -> Deadline {
        self.lock().deadline()
    }

    /// Waits until the run is over, and says by which limit.
    pub(crate) async fn expired(&self) -> Limit {
        loop {
            let Deadline { at, limit } = self.deadline();
            tokio::time::sleep_until(at).await;
            // A stream may have moved the end meanwhile.
            if self.deadline().at <= at {
                return limit;
            }
        }
    }

    /// A call begins to wait for a service; it ends when what is returned is dropped.
    pub(crate) fn wait(&self) -> Waiting {
        self.lock().open_stream(Instant::now());
        Waiting(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call waits for a service.
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
    fn a_stream_that_took_all_leaves_none() {
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
    async fn the_longest_times_are_times_and_the_shortest_expire() {
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
