//! Decides how long `hookrun ci` waits for its tasks: as long as there is progress. Pure.

use std::time::Duration;

/// The state of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct QueueState {
    /// The number of events that no worker has taken.
    pub(super) spooled: u64,
    /// The number of tasks that are due, waiting or running.
    pub(super) open: u64,
    /// The number of these that may run now.
    pub(super) due: u64,
    /// The number of these that run.
    pub(super) running: u64,
    /// The number of events taken and tasks ended, which grows with every progress.
    pub(super) ended: u64,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitDecision {
    /// No task is left.
    Finished,
    /// Check again later.
    Wait,
    /// There was no progress for too long.
    GiveUp,
}

/// Measures the time without progress.
#[derive(Debug)]
pub(super) struct IdleTimeout {
    limit: Duration,
    idle: Duration,
    last: Option<QueueState>,
}

impl IdleTimeout {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, idle: Duration::ZERO, last: None }
    }

    /// Decides, given the state and the time since the last call. Progress is an event that was
    /// taken or a task that ended. Time during a run does not count, because a run has limits of
    /// its own. A transient failure is not progress, so the time between attempts counts while a
    /// server is down.
    pub(super) fn step(&mut self, seen: QueueState, elapsed: Duration) -> WaitDecision {
        if seen.spooled == 0 && seen.open == 0 {
            return WaitDecision::Finished;
        }
        let progress =
            self.last.is_some_and(|last| seen.ended > last.ended || seen.spooled < last.spooled);
        if progress {
            self.idle = Duration::ZERO;
        } else if seen.running == 0 {
            self.idle = self.idle.saturating_add(elapsed);
        }
        self.last = Some(seen);
        if self.idle >= self.limit { WaitDecision::GiveUp } else { WaitDecision::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waiting_ends_after_the_time_without_progress() {
        let mut patience = IdleTimeout::new(3 * SECOND);
        let seen =
            |spooled, open, running, ended| QueueState { spooled, open, due: 0, running, ended };
        assert_eq!(patience.step(seen(1, 0, 0, 0), SECOND), WaitDecision::Wait);
        assert_eq!(patience.step(seen(1, 0, 0, 0), SECOND), WaitDecision::Wait);
        assert_eq!(patience.step(seen(0, 2, 1, 1), SECOND), WaitDecision::Wait, "taken");
        for _ in 0..10 {
            assert_eq!(
                patience.step(seen(0, 2, 1, 1), SECOND),
                WaitDecision::Wait,
                "a run has its own limit"
            );
        }
        assert_eq!(patience.step(seen(0, 1, 0, 2), 10 * SECOND), WaitDecision::Wait, "ended");
        assert_eq!(patience.step(seen(0, 1, 0, 2), 2 * SECOND), WaitDecision::Wait);
        assert_eq!(patience.step(seen(0, 1, 1, 2), 9 * SECOND), WaitDecision::Wait, "an attempt");
        assert_eq!(patience.step(seen(0, 1, 0, 2), SECOND), WaitDecision::GiveUp, "that failed");
    }

    #[test]
    fn a_zero_timeout_or_an_empty_queue_ends_at_once() {
        assert_eq!(
            IdleTimeout::new(Duration::ZERO)
                .step(QueueState { spooled: 1, ..QueueState::default() }, Duration::ZERO),
            WaitDecision::GiveUp
        );
        assert_eq!(
            IdleTimeout::new(Duration::ZERO).step(QueueState::default(), SECOND),
            WaitDecision::Finished
        );
    }
}
