//! Decides whether a machine may be used, may be tried by one build, or is out until later. Pure;
//! the facts are in [`crate::history`].
//!
//! A machine that failed is out for a time that doubles with each failure in a row, with jitter, up
//! to a limit. Then one session (with the lock [`Probe`]) sends its build there, and all others
//! continue without the machine until that session has an answer. A machine that answers is used
//! again immediately, and for [`PROVEN_FOR`] a build may be accepted before it is connected to.

use std::path::Path;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use crate::history::MachineHealth;
use crate::private;

/// The longest time that a machine is out, before jitter. A machine that works again is noticed
/// within this time, if there are builds.
pub const LONGEST_OUT: Duration = Duration::from_mins(5);
/// The time after an answer of a machine during which a build may be accepted before connecting to
/// it.
pub const PROVEN_FOR: Duration = Duration::from_secs(90);
/// The random part of the time, in both directions, so that sessions of many hosts do not return to
/// one machine at the same time.
const JITTER: f64 = 0.25;
/// The directory of the probes' locks, below [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
const PROBES: &str = "probes";

/// The state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It answered recently.
    Proven,
    /// The machine is unknown, or its last answer is old.
    Unknown,
    /// It failed, and its time is over, so one build may try it.
    Due,
    /// It failed, and may be tried after this time.
    Out {
        /// The time from now, in milliseconds.
        ms: u64,
    },
}

/// Returns the state of a machine at `now_ms`.
pub fn availability(health: Option<&MachineHealth>, now_ms: u64) -> Availability {
    let Some(health) = health else { return Availability::Unknown };
    match (health.failures, health.retry_ms, health.succeeded_ms) {
        (1.., Some(retry), _) if retry > now_ms => {
            // A clock that was set back must not keep a machine out for ever.
            let longest = millis(LONGEST_OUT.mul_f64(1.0 + JITTER));
            let ms = retry - now_ms;
            if ms > longest { Availability::Due } else { Availability::Out { ms } }
        }
        (1.., _, _) => Availability::Due,
        (0, _, Some(succeeded)) if now_ms.saturating_sub(succeeded) <= millis(PROVEN_FOR) => {
            Availability::Proven
        }
        (0, _, _) => Availability::Unknown,
    }
}

/// Returns the time that a machine is out after this number of failures in a row: `first`, twice
/// that, and so on. `chance` is a random number from 0 to 1.
pub fn time_out(failures: u32, first: Duration, chance: f64) -> Duration {
    let doubled =
        first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled
        .min(LONGEST_OUT.max(first))
        .mul_f64(1.0 - JITTER + 2.0 * JITTER * chance.clamp(0.0, 1.0))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The right to try a machine that is due, of one session at a time.
#[derive(Debug)]
pub struct Probe {
    _lock: Option<OwnedFd>,
}

impl Probe {
    /// Takes the right, if no other session has it. If the lock file cannot be used, every session
    /// may try the machine; otherwise a machine that works again would never be noticed.
    pub fn take(builders: &Path, machine: &str) -> Option<Self> {
        let name = blake3::hash(machine.as_bytes()).to_hex();
        let file = private::directory(builders)
            .and_then(|_| private::directory(&builders.join(PROBES)))
            .and_then(|probes| private::file(&probes, name.as_str(), OFlags::empty()));
        let Ok(file) = file else { return Some(Self { _lock: None }) };
        private::lock_within(&file, Duration::ZERO).then_some(Self { _lock: Some(file) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn health(failures: u32, retry_ms: Option<u64>, succeeded_ms: Option<u64>) -> MachineHealth {
        MachineHealth { failures, retry_ms, succeeded_ms, ..MachineHealth::unknown("ssh://m") }
    }

    #[test]
    fn a_failed_machine_is_out_then_due_then_proven() {
        let at = |health: &MachineHealth| availability(Some(health), 1_000_000);
        assert_eq!(availability(None, 1), Availability::Unknown);
        assert_eq!(at(&health(0, None, None)), Availability::Unknown);
        assert_eq!(at(&health(0, None, Some(999_999))), Availability::Proven);
        assert_eq!(at(&health(0, None, Some(1_000_000 - 91_000))), Availability::Unknown);
        assert_eq!(at(&health(1, Some(1_000_010), Some(999_999))), Availability::Out { ms: 10 });
        assert_eq!(at(&health(1, Some(1_000_000), None)), Availability::Due);
        assert_eq!(
            at(&health(3, Some(u64::MAX), None)),
            Availability::Due,
            "the clock was set back"
        );
    }

    #[test]
    fn one_probe_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Probe::take(directory.path(), "ssh://m").unwrap();
        assert!(Probe::take(directory.path(), "ssh://m").is_none());
        assert!(Probe::take(directory.path(), "ssh://other").is_some());
        drop(first);
        assert!(Probe::take(directory.path(), "ssh://m").is_some());
        let nowhere = Path::new("/proc/nowhere");
        assert!(
            Probe::take(nowhere, "ssh://m").is_some(),
            "without a lock every session may try it"
        );
    }

    proptest! {
        #[test]
        fn the_time_out_doubles_up_to_a_limit(failures in 1u32..200, first in 1u64..600, chance in 0.0f64..1.0) {
            let first = Duration::from_secs(first);
            let out = time_out(failures, first, chance);
            prop_assert!(out >= first.mul_f64(0.74));
            prop_assert!(out <= LONGEST_OUT.max(first).mul_f64(1.26));
            prop_assert!(time_out(failures + 1, first, chance) >= out);
        }
    }
}
