//! The circuit breaker of a plugin: while the service that the plugin needs is unavailable, its
//! tasks wait together instead of failing one by one. Pure.
//!
//! After [`THRESHOLD`] transient failures in a row, of any tasks, the breaker opens. Then only one
//! task at a time is started, after a back-off that grows up to the plugin's longest delay. Its
//! failures are not counted as attempts. The first success closes the breaker. Traps and limits are
//! no evidence about the service.

use std::time::Duration;

use super::retry;
use hookrun_config::Retry;
use hookrun_nix::outcome::{FailureCause, Outcome, RunReport};

/// The number of failures in a row that open a breaker: one more than can usually be in progress
/// when a service goes down.
pub const THRESHOLD: u32 = 5;

/// The breaker of one plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    /// The number of transient failures since the last success.
    failures: u32,
    open: Option<OpenSince>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenSince {
    since_ms: u64,
    until_ms: u64,
    /// The number of failed attempts while it is open.
    trips: u32,
    /// Whether a test attempt is running.
    trying: bool,
}

/// Which tasks may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// All tasks.
    All,
    /// One task, as a test.
    One,
    /// No task, until this time or until the test has ended.
    Nothing {
        /// The time, in milliseconds since 1970.
        until_ms: u64,
    },
}

/// What an attempt shows about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceSign {
    /// The service answers.
    Answers,
    /// The service seems to be down.
    Down,
    /// Nothing: the attempt ended for another reason, or was given back.
    Inconclusive,
}

impl ServiceSign {
    /// Returns what this attempt shows. An attempt that stored something before it failed has
    /// reached a service that works at least temporarily.
    pub fn of(report: &RunReport) -> Self {
        if report.cause != FailureCause::Service {
            return Self::Inconclusive;
        }
        match &report.outcome {
            Outcome::Done { .. } | Outcome::Failed { transient: false, .. } => Self::Answers,
            Outcome::Failed { transient: true, .. } if report.progress => Self::Answers,
            Outcome::Failed { transient: true, .. } => Self::Down,
            Outcome::Trapped { .. }
            | Outcome::LimitReached { .. }
            | Outcome::Lost { .. }
            | Outcome::Refused { .. } => Self::Inconclusive,
        }
    }
}

/// The effect of an attempt on the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// No change that has to be stored.
    None,
    /// The breaker opened, or a test failed.
    Open {
        /// The time when it opened.
        since_ms: u64,
        /// The time of the next test.
        until_ms: u64,
        /// The number of failed tests.
        trips: u32,
    },
    /// The breaker closed.
    Closed,
}

impl Breaker {
    /// Returns a breaker that was open when the previous worker ended.
    pub fn reopened(since_ms: u64, until_ms: u64, trips: u32) -> Self {
        Self {
            failures: THRESHOLD,
            open: Some(OpenSince { since_ms, until_ms, trips, trying: false }),
        }
    }

    /// Returns whether the breaker is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Returns which tasks may start now.
    pub fn admits(&self, now_ms: u64) -> Admission {
        match self.open {
            None => Admission::All,
            Some(open) if !open.trying && open.until_ms <= now_ms => Admission::One,
            Some(open) => Admission::Nothing { until_ms: open.until_ms },
        }
    }

    /// Records that a task was started. Returns whether it is the test of an open breaker.
    pub fn began(&mut self) -> bool {
        if let Some(open) = &mut self.open {
            open.trying = true;
        }
        self.open.is_some()
    }

    /// Records that an attempt ended. `random` is as for [`retry::delay`].
    pub fn ended(
        &mut self,
        sign: ServiceSign,
        was_try: bool,
        now_ms: u64,
        retry: &Retry,
        random: f64,
    ) -> BreakerChange {
        match sign {
            ServiceSign::Answers => {
                self.failures = 0;
                if self.open.take().is_some() { BreakerChange::Closed } else { BreakerChange::None }
            }
            ServiceSign::Down => {
                self.failures = self.failures.saturating_add(1);
                let trips = match self.open {
                    Some(open) if was_try => open.trips.saturating_add(1),
                    None if self.failures >= THRESHOLD => 0,
                    // The attempt began before the breaker opened and shows nothing new, or there
                    // were few failures.
                    Some(_) | None => return BreakerChange::None,
                };
                let since_ms = self.open.map_or(now_ms, |open| open.since_ms);
                let wait = retry::delay(retry, THRESHOLD.saturating_add(trips), random)
                    .max(Duration::from_millis(1));
                let until_ms =
                    now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                self.open = Some(OpenSince { since_ms, until_ms, trips, trying: false });
                BreakerChange::Open { since_ms, until_ms, trips }
            }
            ServiceSign::Inconclusive => {
                // Another task can be the test.
                if let Some(open) = self.open.as_mut().filter(|_| was_try) {
                    open.trying = false;
                }
                BreakerChange::None
            }
        }
    }

    /// Makes an open breaker test now, because the clock was set back.
    pub fn clock_was_set(&mut self, now_ms: u64) {
        if let Some(open) = &mut self.open {
            open.until_ms = open.until_ms.min(now_ms);
            open.since_ms = open.since_ms.min(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry() -> Retry {
        Retry::default()
    }

    #[test]
    fn the_breaker_opens_tests_and_closes() {
        let mut breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            assert_eq!(
                breaker.ended(ServiceSign::Down, false, 1000, &retry(), 1.0),
                BreakerChange::None
            );
        }
        assert_eq!(breaker.admits(1000), Admission::All);
        let opened = breaker.ended(ServiceSign::Down, false, 1000, &retry(), 1.0);
        assert_eq!(opened, BreakerChange::Open { since_ms: 1000, until_ms: 17_000, trips: 0 });
        assert_eq!(
            breaker.ended(ServiceSign::Down, false, 1001, &retry(), 1.0),
            BreakerChange::None,
            "it was running when the breaker opened"
        );
        assert_eq!(breaker.admits(16_999), Admission::Nothing { until_ms: 17_000 });
        assert_eq!(breaker.admits(17_000), Admission::One);
        assert!(breaker.began());
        assert_eq!(
            breaker.admits(17_000),
            Admission::Nothing { until_ms: 17_000 },
            "one at a time"
        );
        let tripped = breaker.ended(ServiceSign::Down, true, 20_000, &retry(), 1.0);
        assert_eq!(tripped, BreakerChange::Open { since_ms: 1000, until_ms: 52_000, trips: 1 });
        assert!(breaker.began());
        assert_eq!(
            breaker.ended(ServiceSign::Inconclusive, true, 52_000, &retry(), 1.0),
            BreakerChange::None
        );
        assert_eq!(breaker.admits(52_000), Admission::One, "an inconclusive test is repeated");
        assert_eq!(
            breaker.ended(ServiceSign::Answers, true, 53_000, &retry(), 1.0),
            BreakerChange::Closed
        );
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn each_outcome_counts_for_or_against_the_service() {
        let sign = |outcome: Outcome, progress: bool| {
            ServiceSign::of(&RunReport { progress, ..outcome.into() })
        };
        let message = String::new;
        let failed =
            |transient| Outcome::Failed { message: message(), transient, retry_after_ms: None };
        assert_eq!(
            sign(Outcome::Done { message: message(), details: vec![] }, false),
            ServiceSign::Answers
        );
        assert_eq!(sign(failed(false), false), ServiceSign::Answers);
        assert_eq!(sign(failed(true), false), ServiceSign::Down);
        assert_eq!(sign(failed(true), true), ServiceSign::Answers, "it has stored something");
        let own = RunReport { cause: FailureCause::Event, ..failed(true).into() };
        assert_eq!(ServiceSign::of(&own), ServiceSign::Inconclusive);
        assert_eq!(sign(Outcome::Trapped { message: message() }, true), ServiceSign::Inconclusive);
        assert_eq!(sign(Outcome::Refused { message: message() }, false), ServiceSign::Inconclusive);
    }

    #[test]
    fn a_success_in_between_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            assert_eq!(
                breaker.ended(ServiceSign::Down, false, 1, &retry(), 1.0),
                BreakerChange::None
            );
            assert_eq!(
                breaker.ended(ServiceSign::Answers, false, 1, &retry(), 1.0),
                BreakerChange::None
            );
        }
    }

    proptest! {
        #[test]
        fn an_open_breaker_always_tests_again(outcomes in proptest::collection::vec((0..3_u8, any::<bool>(), 0.0..1.0), 0..60)) {
            let (mut breaker, mut now) = (Breaker::default(), 0);
            for (kind, was_try, random) in outcomes {
                if breaker.admits(now) == Admission::One {
                    breaker.began();
                }
                let sign = match kind {
                    0 => ServiceSign::Answers,
                    1 => ServiceSign::Down,
                    _ => ServiceSign::Inconclusive,
                };
                breaker.ended(sign, was_try, now, &retry(), random);
                now += 1000;
            }
            // Whatever happened before: if no test is running, the next one comes within the
            // longest delay.
            breaker.ended(ServiceSign::Inconclusive, true, now, &retry(), 1.0);
            let stuck = matches!(breaker.admits(now + 900_000), Admission::Nothing { .. });
            prop_assert!(!stuck);
        }
    }
}
