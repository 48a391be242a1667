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
use hookrun_nix::outcome::{Outcome, RunReport, Trouble};

/// Failures in a row that open a breaker: as many as can be in flight when a service goes down, and
/// one more.
pub const THRESHOLD: u32 = 5;

/// The breaker of one plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Transient failures since the last sign of life.
    failures: u32,
    open: Option<OpenSince>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenSince {
    since_ms: u64,
    until_ms: u64,
    /// Tries that failed.
    trips: u32,
    /// Whether a try is running.
    trying: bool,
}

/// What may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Anything.
    All,
    /// One task, as a try.
    One,
    /// Nothing, until then or until the try has ended.
    Nothing {
        /// Milliseconds since 1970.
        until_ms: u64,
    },
}

/// What an ended attempt says about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answers.
    Life,
    /// It seems to be down.
    Trouble,
    /// Nothing: the attempt ended for another reason, or was given back.
    Nothing,
}

impl Sign {
    /// What this attempt says. One that stored something and failed then has met a service that
    /// works, if not for long.
    pub fn of(report: &RunReport) -> Self {
        if report.trouble != Trouble::Service {
            return Self::Nothing;
        }
        match &report.outcome {
            Outcome::Done { .. } | Outcome::Failed { transient: false, .. } => Self::Life,
            Outcome::Failed { transient: true, .. } if report.progress => Self::Life,
            Outcome::Failed { transient: true, .. } => Self::Trouble,
            Outcome::Trapped { .. }
            | Outcome::LimitReached { .. }
            | Outcome::Lost { .. }
            | Outcome::Refused { .. } => Self::Nothing,
        }
    }
}

/// What an ended attempt did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that has to be kept.
    None,
    /// It opened, or a try has failed.
    Open {
        /// When it opened.
        since_ms: u64,
        /// When the next try is.
        until_ms: u64,
        /// Tries that have failed.
        trips: u32,
    },
    /// It closed.
    Closed,
}

impl Breaker {
    /// A breaker that was open when the worker before ended.
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

    /// What may be started now.
    pub fn admits(&self, now_ms: u64) -> Admission {
        match self.open {
            None => Admission::All,
            Some(open) if !open.trying && open.until_ms <= now_ms => Admission::One,
            Some(open) => Admission::Nothing { until_ms: open.until_ms },
        }
    }

    /// A task was started. True: it is the try of an open breaker.
    pub fn began(&mut self) -> bool {
        if let Some(open) = &mut self.open {
            open.trying = true;
        }
        self.open.is_some()
    }

    /// An attempt ended. `random` is as for [`retry::delay`].
    pub fn ended(
        &mut self,
        sign: Sign,
        was_try: bool,
        now_ms: u64,
        retry: &Retry,
        random: f64,
    ) -> Change {
        match sign {
            Sign::Life => {
                self.failures = 0;
                if self.open.take().is_some() { Change::Closed } else { Change::None }
            }
            Sign::Trouble => {
                self.failures = self.failures.saturating_add(1);
                let trips = match self.open {
                    Some(open) if was_try => open.trips.saturating_add(1),
                    None if self.failures >= THRESHOLD => 0,
                    // Begun before it opened, and says nothing new; or one of few.
                    Some(_) | None => return Change::None,
                };
                let since_ms = self.open.map_or(now_ms, |open| open.since_ms);
                let wait = retry::delay(retry, THRESHOLD.saturating_add(trips), random)
                    .max(Duration::from_millis(1));
                let until_ms =
                    now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                self.open = Some(OpenSince { since_ms, until_ms, trips, trying: false });
                Change::Open { since_ms, until_ms, trips }
            }
            Sign::Nothing => {
                // The next task is a try as good as this one.
                if let Some(open) = self.open.as_mut().filter(|_| was_try) {
                    open.trying = false;
                }
                Change::None
            }
        }
    }

    /// The clock was set back: an open breaker tries now.
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
    fn the_breaker_opens_tries_and_closes() {
        let mut breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            assert_eq!(breaker.ended(Sign::Trouble, false, 1000, &retry(), 1.0), Change::None);
        }
        assert_eq!(breaker.admits(1000), Admission::All);
        let opened = breaker.ended(Sign::Trouble, false, 1000, &retry(), 1.0);
        assert_eq!(opened, Change::Open { since_ms: 1000, until_ms: 17_000, trips: 0 });
        assert_eq!(
            breaker.ended(Sign::Trouble, false, 1001, &retry(), 1.0),
            Change::None,
            "in flight when it opened"
        );
        assert_eq!(breaker.admits(16_999), Admission::Nothing { until_ms: 17_000 });
        assert_eq!(breaker.admits(17_000), Admission::One);
        assert!(breaker.began());
        assert_eq!(
            breaker.admits(17_000),
            Admission::Nothing { until_ms: 17_000 },
            "one at a time"
        );
        let tripped = breaker.ended(Sign::Trouble, true, 20_000, &retry(), 1.0);
        assert_eq!(tripped, Change::Open { since_ms: 1000, until_ms: 52_000, trips: 1 });
        assert!(breaker.began());
        assert_eq!(breaker.ended(Sign::Nothing, true, 52_000, &retry(), 1.0), Change::None);
        assert_eq!(breaker.admits(52_000), Admission::One, "a try that told nothing is made again");
        assert_eq!(breaker.ended(Sign::Life, true, 53_000, &retry(), 1.0), Change::Closed);
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn each_outcome_counts_for_or_against_the_service() {
        let sign =
            |outcome: Outcome, progress: bool| Sign::of(&RunReport { progress, ..outcome.into() });
        let message = String::new;
        let failed =
            |transient| Outcome::Failed { message: message(), transient, retry_after_ms: None };
        assert_eq!(sign(Outcome::Done { message: message(), details: vec![] }, false), Sign::Life);
        assert_eq!(sign(failed(false), false), Sign::Life);
        assert_eq!(sign(failed(true), false), Sign::Trouble);
        assert_eq!(sign(failed(true), true), Sign::Life, "it has stored something");
        let own = RunReport { trouble: Trouble::Event, ..failed(true).into() };
        assert_eq!(Sign::of(&own), Sign::Nothing);
        assert_eq!(sign(Outcome::Trapped { message: message() }, true), Sign::Nothing);
        assert_eq!(sign(Outcome::Refused { message: message() }, false), Sign::Nothing);
    }

    #[test]
    fn a_success_between_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            assert_eq!(breaker.ended(Sign::Trouble, false, 1, &retry(), 1.0), Change::None);
            assert_eq!(breaker.ended(Sign::Life, false, 1, &retry(), 1.0), Change::None);
        }
    }

    proptest! {
        #[test]
        fn an_open_breaker_always_tries_again(outcomes in proptest::collection::vec((0..3_u8, any::<bool>(), 0.0..1.0), 0..60)) {
            let (mut breaker, mut now) = (Breaker::default(), 0);
            for (kind, was_try, random) in outcomes {
                if breaker.admits(now) == Admission::One {
                    breaker.began();
                }
                let sign = match kind {
                    0 => Sign::Life,
                    1 => Sign::Trouble,
                    _ => Sign::Nothing,
                };
                breaker.ended(sign, was_try, now, &retry(), random);
                now += 1000;
            }
            // Whatever was before: once no try is in flight, the next comes within the longest
            // delay.
            breaker.ended(Sign::Nothing, true, now, &retry(), 1.0);
            let stuck = matches!(breaker.admits(now + 900_000), Admission::Nothing { .. });
            prop_assert!(!stuck);
        }
    }
}
