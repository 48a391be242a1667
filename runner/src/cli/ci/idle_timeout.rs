//! Decides how long `hookrun ci` waits: while there is progress. Pure.

use std::time::Duration;

/// The state of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Events that no worker has taken.
    pub(super) spooled: u64,
    /// Tasks that are due, wait for their time or run.
    pub(super) open: u64,
    /// Of these, those that may run now.
    pub(super) due: u64,
    /// Of these, those that run.
    pub(super) running: u64,
    /// Events taken and tasks ended: grows with every progress.
    pub(super) ended: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is left.
    Finished,
    /// Look again.
    Wait,
    /// There was no progress for too long.
    GiveUp,
}

/// Counts the time without progress.
#[derive(Debug)]
pub(super) struct IdleTimeout {
    limit: Duration,
    idle: Duration,
    last: Option<Seen>,
}

impl IdleTimeout {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, idle: Duration::ZERO, last: None }
    }

    /// Returns what to do about the state `elapsed` after the last call. Progress is an event that
    /// was taken or a task that ended. Time during a run does not count, because a run has limits
    /// of its own. A transient failure is not progress: with an endpoint that is down, the time
    /// between the attempts adds up.
    pub(super) fn step(&mut self, seen: Seen, elapsed: Duration) -> Verdict {
        if seen.spooled == 0 && seen.open == 0 {
            return Verdict::Finished;
        }
        let progress =
            self.last.is_some_and(|last| seen.ended > last.ended || seen.spooled < last.spooled);
        if progress {
            self.idle = Duration::ZERO;
        } else if seen.running == 0 {
            self.idle = self.idle.saturating_add(elapsed);
        }
        self.last = Some(seen);
        if self.idle >= self.limit { Verdict::GiveUp } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waiting_ends_after_the_time_without_progress() {
        let mut patience = IdleTimeout::new(3 * SECOND);
        let seen = |spooled, open, running, ended| Seen { spooled, open, due: 0, running, ended };
        assert_eq!(patience.step(seen(1, 0, 0, 0), SECOND), Verdict::Wait);
        assert_eq!(patience.step(seen(1, 0, 0, 0), SECOND), Verdict::Wait);
        assert_eq!(patience.step(seen(0, 2, 1, 1), SECOND), Verdict::Wait, "taken");
        for _ in 0..10 {
            assert_eq!(
                patience.step(seen(0, 2, 1, 1), SECOND),
                Verdict::Wait,
                "a run has its own limit"
            );
        }
        assert_eq!(patience.step(seen(0, 1, 0, 2), 10 * SECOND), Verdict::Wait, "ended");
        assert_eq!(patience.step(seen(0, 1, 0, 2), 2 * SECOND), Verdict::Wait);
        assert_eq!(patience.step(seen(0, 1, 1, 2), 9 * SECOND), Verdict::Wait, "an attempt");
        assert_eq!(patience.step(seen(0, 1, 0, 2), SECOND), Verdict::GiveUp, "that failed");
    }

    #[test]
    fn a_zero_timeout_or_an_empty_queue_ends_at_once() {
        assert_eq!(
            IdleTimeout::new(Duration::ZERO)
                .step(Seen { spooled: 1, ..Seen::default() }, Duration::ZERO),
            Verdict::GiveUp
        );
        assert_eq!(
            IdleTimeout::new(Duration::ZERO).step(Seen::default(), SECOND),
            Verdict::Finished
        );
    }
}
