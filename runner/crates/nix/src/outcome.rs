//! The result of a plugin's run: outcome, use and log. Shared by the plugin host, the queue, the
//! commands and builder selection.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Outcome {
    /// The plugin returned a result.
    Done {
        /// Its sentence.
        message: String,
        /// Its figures.
        details: Vec<(String, String)>,
    },
    /// The plugin returned a failure.
    Failed {
        /// Its sentence.
        message: String,
        /// Whether a retry may help.
        transient: bool,
        /// Not before this many milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The plugin trapped: a defect in it. Not retried more often than a transient failure, and it
    /// may pass.
    Trapped {
        /// What the engine says, with the guest's stack.
        message: String,
    },
    /// A limit ended the run.
    LimitReached {
        /// The key of the limit in the configuration, such as `memory`.
        limit: String,
        /// Names limit, use, key and the line to write.
        message: String,
    },
    /// It cannot be done any more: the event's outputs were collected or removed.
    Lost {
        /// Names what is gone.
        message: String,
    },
    /// The operator has to fix something: the plugin does not load, its grants or its
    /// configuration are wrong, or a service refuses credentials. The task is kept, the attempt is
    /// not counted, and it runs again when configuration, plugin or secrets change, and every few
    /// minutes.
    Refused {
        /// Ends in the fix.
        message: String,
    },
}

/// The class of an attempt: how its run ended, or that it did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// [`Outcome::Done`].
    Done,
    /// [`Outcome::Failed`], and a retry may help.
    Transient,
    /// [`Outcome::Failed`], and a retry does not help.
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

    /// The sentence.
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

/// What a run used, to set beside its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Wall time of the run, without loading.
    #[serde(rename = "wall-ms", alias = "wall", with = "as_ms")]
    pub wall: Duration,
    /// Time to have the plugin ready: artifact mapped (or compiled), instance made.
    #[serde(rename = "prepare-ms", alias = "start", with = "as_ms")]
    pub start: Duration,
    /// Highest size of the linear memories, in bytes.
    pub memory: u64,
    /// Host calls made, those of WASI apart.
    pub host_calls: u64,
    /// Calls of WASI: clocks, random numbers, polls, streams.
    #[serde(default)]
    pub wasi_calls: u64,
    /// Bytes that crossed the border in host calls, both ways.
    pub host_bytes: u64,
    /// Bytes of log messages.
    pub log_bytes: u64,
    /// Host calls by `interface.function`, those of WASI included.
    pub calls: BTreeMap<String, u64>,
    /// Host calls refused for want of a grant, by `interface.function`.
    pub denied: BTreeMap<String, u64>,
}

/// A duration as a number of milliseconds. Seconds and nanoseconds, which journals may hold from
/// before, are read as well.
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

/// One message a plugin logged.
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

/// All there is to say about one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunReport {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// What it logged.
    pub log: Vec<LogLine>,
    /// Did it do something that lasts, such as storing an object? If it failed all the same, the
    /// attempt is not counted: the next one has less to do.
    #[serde(default)]
    pub progress: bool,
    /// If it failed: whose trouble that is.
    #[serde(default)]
    pub trouble: Trouble,
}

/// Whose trouble it is that a run failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// That of the service which the plugin needs, for all that is known.
    #[default]
    Service,
    /// The event's own: it says nothing about the service.
    Event,
    /// Another run's, or the process's in which both were: it says nothing about this run, which is
    /// not counted.
    Neighbour,
}

impl RunReport {
    /// A run that could not begin.
    pub fn refused(message: impl Into<String>) -> Self {
        Outcome::Refused { message: message.into() }.into()
    }
}

/// A run that used and logged nothing.
impl From<Outcome> for RunReport {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            usage: Usage::default(),
            log: Vec::new(),
            progress: false,
            trouble: Trouble::default(),
        }
    }
}

/// One upload that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Transfer {
    /// The store path.
    pub path: String,
    /// The object store's name in the configuration.
    pub store: String,
    /// Bytes that the service has taken, compressed.
    pub bytes: u64,
    /// Size of the NAR, before compression.
    pub nar_size: u64,
    /// When it began; milliseconds since 1970.
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
