//! `retry` of a plugin.

use std::time::Duration;

use super::KeyError;
use super::quantity::duration;

/// How a plugin's tasks are retried.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Retry {
    /// Total number of attempts before a task becomes a dead letter.
    pub attempts: u32,
    /// Delay before the second attempt; doubles from there.
    #[serde(deserialize_with = "duration")]
    pub min_delay: Duration,
    #[serde(deserialize_with = "duration")]
    pub max_delay: Duration,
    /// A task with transient failures is given up after this time, even if attempts are left: while
    /// a service is down for all tasks of a plugin, attempts are not counted.
    #[serde(deserialize_with = "duration")]
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        // 20 attempts with delays up to 15 minutes last about 3.5 hours.
        Self {
            attempts: 20,
            min_delay: Duration::from_secs(1),
            max_delay: Duration::from_mins(15),
            give_up_after: Duration::from_hours(7 * 24),
        }
    }
}

impl Retry {
    pub(super) fn check(&self) -> Result<(), KeyError> {
        if self.attempts == 0 {
            return Err(KeyError::new(
                &["attempts"],
                "`attempts` counts the first one too; write at least `attempts = 1`",
            ));
        }
        Ok(())
    }
}
