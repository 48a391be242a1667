//! Decides whether and when a task is tried again: exponential back-off with jitter. Pure.

use std::time::Duration;

use hookrun_config::Retry;
use hookrun_nix::outcome::{FailureCause, Outcome};

/// The number of attempts of a task that traps or reaches a limit. Usually the plugin or its limit
/// is wrong, but a time limit may also be reached on a busy machine.
pub const ATTEMPTS_OF_DEFECTS: u32 = 3;

/// The longest wait that a plugin may request. The event's outputs keep their roots as long as a
/// task of it is open.
pub const LONGEST_WAIT: Duration = Duration::from_hours(7 * 24);

/// A refused task is tried again after this time even if hookrun sees no change, because the
/// credentials may have been corrected at the service. It is shorter if the plugin's `max-delay`
/// is.
pub const REFUSED_DELAY: Duration = Duration::from_mins(5);

/// The next step of a task after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The task succeeded.
    Done,
    /// The task failed permanently: a dead letter.
    Dead,
    /// The task cannot run any longer.
    Lost,
    /// The operator has to fix something. The attempt is not counted. The task runs again when
    /// configuration or secrets change, and every few minutes.
    Refused {
        /// The time after which it is tried again if nothing changes.
        after: Duration,
    },
    /// The task is tried again.
    Retry {
        /// The shortest time before the next attempt.
        after: Duration,
    },
    /// The task is tried again, and this attempt is not counted.
    Again {
        /// The shortest time before the next attempt.
        after: Duration,
        /// The reason why it is not counted.
        why: Uncounted,
    },
}

/// The reason why an attempt is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncounted {
    /// The service that the plugin needs is down for all its tasks ([`super::breaker`]).
    Outage,
    /// The attempt did a part of the work.
    Progress,
    /// The process of the run ended, perhaps because of another run.
    Neighbour,
}

/// The state of a task when an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptState {
    /// The number of attempts, including this one.
    pub attempts: u32,
    /// The time for which it has been tried, as counted by [`age`].
    pub age: Duration,
    /// Whether the plugin's breaker is open.
    pub outage: bool,
    /// Whether the attempt made permanent progress.
    pub progress: bool,
    /// The part that caused a failure.
    pub cause: FailureCause,
}

/// Returns the next step after an attempt that ended with `outcome`. `random`, from 0 to 1, spreads
/// tasks that failed together: see [`delay`]. The delay is never shorter than the plugin requested,
/// up to [`LONGEST_WAIT`].
pub fn next(outcome: &Outcome, state: AttemptState, retry: &Retry, random: f64) -> Next {
    let AttemptState { attempts, age, outage, progress, cause } = state;
    let (allowed, asked) = match outcome {
        Outcome::Done { .. } => return Next::Done,
        Outcome::Refused { .. } => return Next::Refused { after: refused_delay(retry) },
        Outcome::Lost { .. } => return Next::Lost,
        Outcome::Failed { transient: false, .. } => return Next::Dead,
        Outcome::Failed { transient: true, retry_after_ms, .. } => {
            (retry.attempts, Duration::from_millis(retry_after_ms.unwrap_or(0)).min(LONGEST_WAIT))
        }
        Outcome::Trapped { .. } | Outcome::LimitReached { .. } => {
            (retry.attempts.min(ATTEMPTS_OF_DEFECTS), Duration::ZERO)
        }
    };
    // An attempt with progress is not counted, because the next one does not repeat the work. A
    // trap is counted nevertheless, because it would occur again in the same place.
    let progress = progress && !matches!(outcome, Outcome::Trapped { .. });
    // After progress, the number of failures in a row starts again.
    let after = delay(retry, if progress { 1 } else { attempts }, random).max(asked);
    if cause == FailureCause::Neighbour {
        return Next::Again { after: retry.min_delay, why: Uncounted::Neighbour };
    }
    let outage = outage && cause == FailureCause::Service;
    let transient = matches!(outcome, Outcome::Failed { .. });
    if (transient || progress) && age >= retry.give_up_after {
        Next::Dead
    } else if transient && outage {
        Next::Again { after, why: Uncounted::Outage }
    } else if progress {
        Next::Again { after, why: Uncounted::Progress }
    } else if attempts >= allowed {
        Next::Dead
    } else {
        Next::Retry { after }
    }
}

/// Returns the time that counts towards `give-up-after` at the end of an attempt: the time that
/// counted before, the time since then, and the duration of the attempt. No period counts for more
/// than a quarter of `give-up-after`, so that no task is given up because the clock is far ahead or
/// the machine was off.
pub fn age(retry: &Retry, before: Duration, since_last: Duration, took: Duration) -> Duration {
    let most = retry.give_up_after / 4;
    before.saturating_add(since_last.min(most)).saturating_add(took.min(most))
}

/// Returns the time until a refused task is tried again if nothing changes.
pub fn refused_delay(retry: &Retry) -> Duration {
    retry.max_delay.min(REFUSED_DELAY)
}

/// Returns the delay after `failures` failures in a row: between half and all of a delay that
/// doubles with each failure, at most `max_delay`.
pub fn delay(retry: &Retry, failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1);
    let full = 2_u32
        .checked_pow(doublings)
        .and_then(|factor| retry.min_delay.checked_mul(factor))
        .unwrap_or(retry.max_delay);
    full.min(retry.max_delay).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transient(retry_after_ms: Option<u64>) -> Outcome {
        Outcome::Failed { message: String::new(), transient: true, retry_after_ms }
    }

    fn next(outcome: &Outcome, attempts: u32, retry: &Retry, random: f64) -> Next {
        super::next(
            outcome,
            AttemptState {
                attempts,
                age: Duration::ZERO,
                outage: false,
                progress: false,
                cause: FailureCause::Service,
            },
            retry,
            random,
        )
    }

    fn after(next: Next) -> Option<u64> {
        match next {
            Next::Retry { after } => Some(u64::try_from(after.as_millis()).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn each_outcome_has_its_next_step() {
        let retry = Retry { attempts: 6, max_delay: Duration::from_secs(5), ..Retry::default() };
        let delays: Vec<_> =
            (1..=6).map(|attempts| after(next(&transient(None), attempts, &retry, 1.0))).collect();
        assert_eq!(delays, [Some(1000), Some(2000), Some(4000), Some(5000), Some(5000), None]);
        assert_eq!(
            after(next(&transient(None), 3, &retry, 0.0)),
            Some(2000),
            "half with the smallest random number"
        );
        assert_eq!(
            after(next(&transient(Some(60_000)), 1, &retry, 0.5)),
            Some(60_000),
            "the plugin requests a longer delay"
        );
        assert_eq!(
            after(next(&transient(Some(u64::MAX)), 1, &retry, 0.5)),
            Some(604_800_000),
            "the requested delay is limited"
        );
        let message = String::new;
        let trap = Outcome::Trapped { message: message() };
        assert_eq!(
            (after(next(&trap, 2, &retry, 1.0)), next(&trap, 3, &retry, 1.0)),
            (Some(2000), Next::Dead)
        );
        let limit = Outcome::LimitReached { limit: "memory".into(), message: message() };
        assert_eq!(next(&limit, 3, &retry, 1.0), Next::Dead);
        let permanent =
            Outcome::Failed { message: message(), transient: false, retry_after_ms: Some(1) };
        assert_eq!(next(&permanent, 1, &retry, 1.0), Next::Dead);
        assert_eq!(
            next(&Outcome::Refused { message: message() }, 99, &retry, 1.0),
            Next::Refused { after: Duration::from_secs(5) }
        );
        assert_eq!(
            next(&Outcome::Done { message: message(), details: vec![] }, 99, &retry, 1.0),
            Next::Done
        );
    }

    #[test]
    fn in_an_outage_attempts_are_not_counted_but_time_is() {
        let retry = Retry::default();
        let at = |attempts, age, outcome: &Outcome| {
            let state = AttemptState {
                attempts,
                age,
                outage: true,
                progress: false,
                cause: FailureCause::Service,
            };
            super::next(outcome, state, &retry, 1.0)
        };
        let second = Duration::from_secs(1);
        assert_eq!(
            at(99, Duration::ZERO, &transient(None)),
            Next::Again { after: retry.max_delay, why: Uncounted::Outage }
        );
        assert_eq!(
            at(1, Duration::ZERO, &transient(None)),
            Next::Again { after: second, why: Uncounted::Outage }
        );
        assert_eq!(at(1, retry.give_up_after, &transient(None)), Next::Dead);
        let trap = Outcome::Trapped { message: String::new() };
        assert_eq!(at(3, Duration::ZERO, &trap), Next::Dead, "a trap is not caused by the service");
        assert_eq!(at(1, retry.give_up_after, &trap), Next::Retry { after: second });
    }

    #[test]
    fn failures_caused_by_the_event_are_counted_in_an_outage() {
        let retry = Retry::default();
        let at = |attempts, cause| {
            let state = AttemptState {
                attempts,
                age: Duration::ZERO,
                outage: true,
                progress: false,
                cause,
            };
            super::next(&transient(None), state, &retry, 1.0)
        };
        let after = retry.min_delay;
        assert_eq!(
            at(retry.attempts, FailureCause::Neighbour),
            Next::Again { after, why: Uncounted::Neighbour }
        );
        assert_eq!(at(1, FailureCause::Event), Next::Retry { after }, "counted also in an outage");
        assert_eq!(at(retry.attempts, FailureCause::Event), Next::Dead);
    }

    #[test]
    fn no_task_is_given_up_because_the_clock_is_far_ahead() {
        let retry = Retry::default();
        let day = Duration::from_hours(24);
        let ahead = age(&retry, Duration::ZERO, 1000 * day, 1000 * day);
        assert!(ahead < retry.give_up_after, "{ahead:?}");
        let mut tried = Duration::ZERO;
        let mut attempts = 0;
        while tried < retry.give_up_after {
            tried = age(&retry, tried, retry.max_delay, Duration::from_secs(1));
            attempts += 1;
        }
        let expected = retry.give_up_after.as_secs() / (retry.max_delay.as_secs() + 1);
        assert!((expected..=expected + 1).contains(&attempts), "{attempts}");
    }

    #[test]
    fn attempts_with_progress_are_not_counted_until_the_time_is_over() {
        let retry = Retry::default();
        let at = |age, outcome: &Outcome| {
            let state = AttemptState {
                attempts: retry.attempts,
                age,
                outage: false,
                progress: true,
                cause: FailureCause::Service,
            };
            super::next(outcome, state, &retry, 1.0)
        };
        let message = String::new;
        let limit = Outcome::LimitReached { limit: "wall-time".into(), message: message() };
        let again = Next::Again { after: retry.min_delay, why: Uncounted::Progress };
        for outcome in [&limit, &transient(None)] {
            assert_eq!(at(Duration::ZERO, outcome), again);
            assert_eq!(at(retry.give_up_after, outcome), Next::Dead);
        }
        assert_eq!(at(Duration::ZERO, &Outcome::Trapped { message: message() }), Next::Dead);
        let permanent =
            Outcome::Failed { message: message(), transient: false, retry_after_ms: None };
        assert_eq!(at(Duration::ZERO, &permanent), Next::Dead, "the plugin reports it");
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(attempts in 1_u32..10_000, random in 0.0..1.0, asked in 0_u64..1_000_000) {
            let retry = Retry { attempts: u32::MAX, ..Retry::default() };
            let delay = after(next(&transient(Some(asked)), attempts, &retry, random)).unwrap();
            prop_assert!(delay >= asked.max(500) && delay <= asked.max(900_000));
        }
    }
}
