//! How a run of a plugin ended, what it used and what it said: the answer of the plugin room to the
//! queue, the commands and the builder selection.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case")]
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
        /// Does a retry make sense?
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
    /// The operator has to mend something: the plugin does not load, its grants or its configuration
    /// are wrong, or a service refuses credentials. The task is kept, the attempt is not counted, and
    /// it runs again when configuration, plugin or secrets change, and every few minutes.
    Refused {
        /// Ends in the fix.
        message: String,
    },
}

impl Outcome {
    /// The class as one word for tables and programs.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Failed { transient: true, .. } => "transient",
            Self::Failed { transient: false, .. } => "permanent",
            Self::Trapped { .. } => "trapped",
            Self::LimitReached { .. } => "limit",
            Self::Refused { .. } => "refused",
        }
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Done { message, .. }
            | Self::Failed { message, .. }
            | Self::Trapped { message }
            | Self::LimitReached { message, .. }
            | Self::Refused { message } => message,
        }
    }
}

/// What a run used, to set beside its limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Wall time of the run, without loading.
    pub wall: Duration,
    /// Time to have the plugin ready: artifact mapped (or compiled), instance made.
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
        Self { outcome, usage: Usage::default(), log: Vec::new(), progress: false }
    }
}
