//! The result of a plugin's run: outcome, used resources and log. Shared by the plugin host, the
//! queue, the commands and builder selection.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Outcome {
    /// The plugin returned a result.
    Done {
        /// The message of the plugin.
        message: String,
        /// Its values by name.
        details: Vec<(String, String)>,
    },
    /// The plugin returned a failure.
    Failed {
        /// The message of the plugin.
        message: String,
        /// Whether a retry may help.
        transient: bool,
        /// The shortest time before the next attempt, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The plugin trapped, which is a defect of the plugin. It may be temporary, so it is retried a
    /// few times.
    Trapped {
        /// The message of the engine, with the guest's stack.
        message: String,
    },
    /// A limit ended the run.
    LimitReached {
        /// The key of the limit in the configuration, such as `memory`.
        limit: String,
        /// A message with the limit, the used value, the key and the line to write.
        message: String,
    },
    /// The task cannot run any longer, because the event's outputs were collected or removed.
    Lost {
        /// A message that names the missing outputs.
        message: String,
    },
    /// The operator has to fix something: the plugin does not load, its grants or its configuration
    /// are wrong, or a service refuses credentials. The task is kept and the attempt is not
    /// counted. It runs again when configuration, plugin or secrets change, and every few minutes.
    Refused {
        /// The message, which ends with the fix.
        message: String,
    },
}

/// The class of an attempt: how its run ended, or why it did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// [`Outcome::Done`].
    Done,
    /// [`Outcome::Failed`]; a retry may help.
    Transient,
    /// [`Outcome::Failed`]; a retry does not help.
    Permanent,
    /// [`Outcome::Trapped`].
    Trapped,
    /// [`Outcome::LimitReached`].
    Limit,
    /// [`Outcome::Refused`].
    Refused,
    /// [`Outcome::Lost`].
    Lost,
    /// The worker ended during the attempt.
    Interrupted,
    /// The event or the class in the journal cannot be read.
    Unreadable,
}

impl Class {
    /// All classes that an attempt can have.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::Transient,
        Self::Permanent,
        Self::Trapped,
        Self::Limit,
        Self::Refused,
        Self::Lost,
        Self::Interrupted,
        Self::Unreadable,
    ];

    /// Returns the word for tables, programs and the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Trapped => "trapped",
            Self::Limit => "limit",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Interrupted => "interrupted",
            Self::Unreadable => "unreadable",
        }
    }

    /// Returns the class with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl rusqlite::ToSql for Class {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl Outcome {
    /// Returns the class.
    pub const fn class(&self) -> Class {
        match self {
            Self::Done { .. } => Class::Done,
            Self::Failed { transient: true, .. } => Class::Transient,
            Self::Failed { transient: false, .. } => Class::Permanent,
            Self::Trapped { .. } => Class::Trapped,
            Self::LimitReached { .. } => Class::Limit,
            Self::Lost { .. } => Class::Lost,
            Self::Refused { .. } => Class::Refused,
        }
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        match self {
            Self::Done { message, .. }
            | Self::Failed { message, .. }
            | Self::Trapped { message }
            | Self::LimitReached { message, .. }
            | Self::Lost { message }
            | Self::Refused { message } => message,
        }
    }
}

/// The resources that a run used, for comparison with its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Wall time of the run, without loading.
    #[serde(rename = "wall-ms", alias = "wall", with = "as_ms")]
    pub wall: Duration,
    /// The time to prepare the plugin: to map (or compile) the artifact and to create the instance.
    #[serde(rename = "prepare-ms", alias = "start", with = "as_ms")]
    pub start: Duration,
    /// The highest total size of the linear memories, in bytes.
    pub memory: u64,
    /// The number of host calls, without those of WASI.
    pub host_calls: u64,
    /// The number of calls of WASI: clocks, random numbers, polls, streams.
    #[serde(default)]
    pub wasi_calls: u64,
    /// The number of bytes transferred in host calls, in both directions.
    pub host_bytes: u64,
    /// The size of the log messages, in bytes.
    pub log_bytes: u64,
    /// The number of host calls by `interface.function`, including those of WASI.
    pub calls: BTreeMap<String, u64>,
    /// The number of host calls that were refused because no grant covers them, by
    /// `interface.function`.
    pub denied: BTreeMap<String, u64>,
}

/// Serialises a duration as a number of milliseconds. The earlier form with seconds and nanoseconds
/// can also be read.
mod as_ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Ms(u64),
        Parts(Duration),
    }

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Ok(match Written::deserialize(from)? {
            Written::Ms(ms) => Duration::from_millis(ms),
            Written::Parts(time) => time,
        })
    }
}

/// A message that a plugin logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogLine {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The message.
    pub message: String,
    /// Its fields.
    #[serde(default)]
    pub fields: Vec<(String, String)>,
}

/// The complete result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The resources that it used.
    pub usage: Usage,
    /// The messages that it logged.
    pub log: Vec<LogLine>,
    /// Whether it did something permanent, such as storing an object. If it failed nevertheless,
    /// the attempt is not counted, because the next one has less to do.
    #[serde(default)]
    pub progress: bool,
    /// The part that caused a failure.
    #[serde(default)]
    pub cause: FailureCause,
}

/// The part that caused the failure of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureCause {
    /// The service that the plugin needs, as far as is known.
    #[default]
    Service,
    /// The event. The failure says nothing about the service.
    Event,
    /// Another run in the same process, or the process. The failure says nothing about this run, so
    /// the attempt is not counted.
    Neighbour,
}

impl RunReport {
    /// Returns the report of a run that could not begin.
    pub fn refused(message: impl Into<String>) -> Self {
        Outcome::Refused { message: message.into() }.into()
    }
}

/// Returns the report of a run that used and logged nothing.
impl From<Outcome> for RunReport {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            usage: Usage::default(),
            log: Vec::new(),
            progress: false,
            cause: FailureCause::default(),
        }
    }
}

/// An upload in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Transfer {
    /// The store path.
    pub path: String,
    /// The object store's name in the configuration.
    pub store: String,
    /// The number of compressed bytes that the service has accepted.
    pub bytes: u64,
    /// The size of the NAR before compression.
    pub nar_size: u64,
    /// The time when it began, in milliseconds since 1970.
    pub since_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_of_milliseconds_and_older_journals_are_read() {
        let usage = Usage {
            wall: Duration::from_millis(1234),
            start: Duration::from_millis(5),
            ..Usage::default()
        };
        let text = serde_json::to_string(&usage).unwrap();
        assert!(text.contains(r#""wall-ms":1234,"prepare-ms":5"#), "{text}");
        assert_eq!(serde_json::from_str::<Usage>(&text).unwrap(), usage);
        let older = text
            .replace(r#""wall-ms":1234"#, r#""wall":{"secs":1,"nanos":234000000}"#)
            .replace(r#""prepare-ms":5"#, r#""start":{"secs":0,"nanos":5000000}"#);
        assert_eq!(serde_json::from_str::<Usage>(&older).unwrap(), usage);
    }
}
