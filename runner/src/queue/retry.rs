//! When a task is tried again: exponential back-off with jitter, and when it is not. Pure.

use std::time::Duration;

use crate::config::Retry;
use crate::outcome::Outcome;

/// Attempts of a task that traps or reaches a limit. It is the plugin or its limit that is wrong, and rarely passes; but a
/// limit on time may have met a slow moment.
pub const ATTEMPTS_OF_DEFECTS: u32 = 3;

/// The longest wait that a plugin may ask for: the event's outputs stay rooted in Nix's store as long as a task of it is open.
pub const LONGEST_WAIT: Duration = Duration::from_hours(7 * 24);

/// What becomes of a task after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It ended well.
    Done,
    /// It failed for good: a dead letter.
    Dead,
    /// It could not begin. No attempts are spent on waiting: the next worker tries it again, with the configuration it
    /// finds then.
    Refused,
    /// It is tried again.
    Retry {
        /// Not before this time has passed.
        after: Duration,
    },
}

/// What comes after an attempt that ended with `outcome`, when `attempts` have been made. `random`, from 0 to 1, spreads
/// tasks that failed together: the delay is between half and all of the doubled one (at most `max_delay`), and never shorter than what the plugin
/// asked for, up to [`LONGEST_WAIT`].
pub fn next(outcome: &Outcome, attempts: u32, retry: &Retry, random: f64) -> Next {
    let (allowed, asked) = match outcome {
        Outcome::Done { .. } => return Next::Done,
        Outcome::Refused { .. } => return Next::Refused,
        Outcome::Failed { transient: false, .. } => return Next::Dead,
        Outcome::Failed { transient: true, retry_after_ms, .. } => {
            (retry.attempts, Duration::from_millis(retry_after_ms.unwrap_or(0)).min(LONGEST_WAIT))
        }
        Outcome::Trapped { .. } | Outcome::LimitReached { .. } => (retry.attempts.min(ATTEMPTS_OF_DEFECTS), Duration::ZERO),
    };
    if attempts >= allowed {
        return Next::Dead;
    }
    let doublings = attempts.saturating_sub(1);
    let full =
        2_u32.checked_pow(doublings).and_then(|factor| retry.min_delay.checked_mul(factor)).unwrap_or(retry.max_delay);
    let delay = full.min(retry.max_delay).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
    Next::Retry { after: delay.max(asked) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transient(retry_after_ms: Option<u64>) -> Outcome {
        Outcome::Failed { message: String::new(), transient: true, retry_after_ms }
    }

    fn after(next: Next) -> Option<u64> {
        match next {
            Next::Retry { after } => Some(u64::try_from(after.as_millis()).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn table() {
        let retry = Retry { attempts: 6, min_delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };
        let delays: Vec<_> = (1..=6).map(|attempts| after(next(&transient(None), attempts, &retry, 1.0))).collect();
        assert_eq!(delays, [Some(1000), Some(2000), Some(4000), Some(5000), Some(5000), None]);
        assert_eq!(after(next(&transient(None), 3, &retry, 0.0)), Some(2000), "half, with no luck");
        assert_eq!(after(next(&transient(Some(60_000)), 1, &retry, 0.5)), Some(60_000), "the plugin knows better");
        assert_eq!(after(next(&transient(Some(u64::MAX)), 1, &retry, 0.5)), Some(604_800_000), "but not for centuries");
        let message = String::new;
        let trap = Outcome::Trapped { message: message() };
        assert_eq!((after(next(&trap, 2, &retry, 1.0)), next(&trap, 3, &retry, 1.0)), (Some(2000), Next::Dead));
        let limit = Outcome::LimitReached { limit: "memory".into(), message: message() };
        assert_eq!(next(&limit, 3, &retry, 1.0), Next::Dead);
        let permanent = Outcome::Failed { message: message(), transient: false, retry_after_ms: Some(1) };
        assert_eq!(next(&permanent, 1, &retry, 1.0), Next::Dead);
        assert_eq!(next(&Outcome::Refused { message: message() }, 99, &retry, 1.0), Next::Refused);
        assert_eq!(next(&Outcome::Done { message: message(), details: vec![] }, 99, &retry, 1.0), Next::Done);
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
