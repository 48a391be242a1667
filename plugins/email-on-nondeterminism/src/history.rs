//! Decides when to send another mail: once for each change, because readers ignore mails that
//! contain nothing new. Pure: the record comes from the `state` capability and is stored there
//! again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

/// The longest key that is stored unhashed; the `state` capability allows 512 bytes.
const MAX_KEY: usize = 480;

/// What is known about one output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The id of the event that was mailed last.
    pub event: String,
    /// The [`Finding::fingerprint`] of that event.
    pub fingerprint: String,
    /// The derivation of that event; empty in records of earlier versions.
    #[serde(default)]
    pub drv_path: String,
    /// The time of the mail, in milliseconds since 1970.
    pub mailed_ms: u64,
    /// The number of findings since then that were not mailed.
    #[serde(default)]
    pub unmailed: u64,
    /// Whether some recipients have not got the mail about `event` yet.
    #[serde(default)]
    pub unfinished: bool,
}

/// The decision about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send a mail.
    Mail {
        /// The reason, which the mail states.
        reason: Reason,
    },
    /// An earlier attempt has mailed this event.
    AlreadyMailed,
    /// The same finding was mailed a short time ago.
    Known {
        /// The record with this finding counted.
        record: Record,
        /// The time from which it would be mailed again, in milliseconds since 1970.
        again_ms: u64,
    },
}

/// The reason why a mail is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The first known finding about this output.
    First,
    /// Other files differ than before, or they differ in another way.
    Changed,
    /// The same finding for a changed derivation: the change has not fixed it.
    AnotherDerivation,
    /// The same finding, and `repeat-after` has passed.
    Again {
        /// The number of findings in between that were not mailed.
        unmailed: u64,
    },
    /// There is no history, because the `state` grant is missing.
    NoState,
}

/// Decides about `finding`, given the record of its output.
pub fn decide(known: Option<&Record>, finding: &Finding, repeat_after: Duration) -> Decision {
    let Some(known) = known else {
        return Decision::Mail { reason: Reason::First };
    };
    if known.event == finding.id {
        return if known.unfinished {
            Decision::Mail { reason: Reason::First }
        } else {
            Decision::AlreadyMailed
        };
    }
    if known.fingerprint != finding.fingerprint() {
        return Decision::Mail { reason: Reason::Changed };
    }
    if !known.drv_path.is_empty() && known.drv_path != finding.drv_path {
        return Decision::Mail { reason: Reason::AnotherDerivation };
    }
    let again_ms =
        known.mailed_ms.saturating_add(u64::try_from(repeat_after.as_millis()).unwrap_or(u64::MAX));
    if finding.time_ms >= again_ms {
        return Decision::Mail { reason: Reason::Again { unmailed: known.unmailed } };
    }
    Decision::Known {
        record: Record { unmailed: known.unmailed.saturating_add(1), ..known.clone() },
        again_ms,
    }
}

/// Returns the record after `finding` was mailed.
pub fn mailed(finding: &Finding) -> Record {
    Record {
        event: finding.id.clone(),
        fingerprint: finding.fingerprint(),
        drv_path: finding.drv_path.clone(),
        mailed_ms: finding.time_ms,
        unmailed: 0,
        unfinished: false,
    }
}

/// Returns the key of this output's record.
pub fn output_key(finding: &Finding) -> String {
    bounded(format!("output/{}/{}", finding.name, finding.output))
}

/// Returns the key of the first mail about a package, which is used for threading.
pub fn thread_key(package: &str) -> String {
    bounded(format!("thread/{package}"))
}

fn bounded(mut key: String) -> String {
    key.truncate(key.floor_char_boundary(MAX_KEY));
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Difference;

    fn finding(id: &str, time_ms: u64, path: &str) -> Finding {
        let difference =
            Difference { path: path.into(), kind: "content".into(), ..Difference::default() };
        Finding {
            id: id.into(),
            time_ms,
            name: "hello-2.12".into(),
            differences: vec![difference],
            ..Finding::default()
        }
    }

    #[test]
    fn each_change_is_mailed_once() {
        let window = Duration::from_secs(1);
        let first = finding("1", 10_000, "a");
        let record = mailed(&first);
        let decide = |known: Option<&Record>, finding: &Finding| decide(known, finding, window);
        assert_eq!(decide(None, &first), Decision::Mail { reason: Reason::First });
        assert_eq!(decide(Some(&record), &first), Decision::AlreadyMailed);
        let known = Record { unmailed: 1, ..record.clone() };
        assert_eq!(
            decide(Some(&record), &finding("2", 10_999, "a")),
            Decision::Known { record: known.clone(), again_ms: 11_000 }
        );
        assert_eq!(
            decide(Some(&known), &finding("3", 11_000, "a")),
            Decision::Mail { reason: Reason::Again { unmailed: 1 } }
        );
        assert_eq!(
            decide(Some(&record), &finding("2", 10_001, "b")),
            Decision::Mail { reason: Reason::Changed }
        );
    }

    #[test]
    fn the_same_difference_in_another_derivation_is_mailed() {
        let window = Duration::from_secs(1);
        let first = Finding { drv_path: "/nix/store/a.drv".into(), ..finding("1", 10_000, "a") };
        let record = mailed(&first);
        let changed = Finding { drv_path: "/nix/store/b.drv".into(), ..finding("2", 10_001, "a") };
        assert_eq!(
            decide(Some(&record), &changed, window),
            Decision::Mail { reason: Reason::AnotherDerivation }
        );
        let unknown = Record { drv_path: String::new(), ..record };
        assert!(matches!(decide(Some(&unknown), &changed, window), Decision::Known { .. }));
    }

    #[test]
    fn a_finding_with_other_values_is_the_same_finding() {
        let with = |previous: &str| {
            let mut finding = finding("1", 0, "a");
            finding.differences[0].previous = previous.into();
            finding.fingerprint()
        };
        assert_eq!(with("1700000000"), with("1700000001"));
    }

    #[test]
    fn keys_are_bounded() {
        let mut long = finding("1", 0, "a");
        long.name = "ä".repeat(600);
        assert!(output_key(&long).len() <= MAX_KEY);
    }
}
