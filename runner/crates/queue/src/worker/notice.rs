//! Messages of a worker for a log or a progress bar.

use crate::retry::{Next, Uncounted};
use hookrun_nix::event::Event;
use hookrun_nix::outcome::RunReport;

/// Something happened that a log or a progress bar wants to know.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Something to look at: a file was set aside, the journal was damaged, the spool cannot be
    /// watched.
    Warning(&'a str),
    /// An event was taken, with so many tasks.
    Took {
        /// The event.
        event: &'a Event,
        /// Its tasks.
        tasks: usize,
    },
    /// An event was taken that says what an earlier one says.
    Merged {
        /// The event.
        event: &'a Event,
        /// The earlier one's id.
        into: &'a str,
    },
    /// An attempt begins.
    Began {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// 1 for the first.
        attempt: u32,
    },
    /// An attempt ended.
    Ended {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// 1 for the first.
        attempt: u32,
        /// How.
        report: &'a RunReport,
        /// What comes next.
        next: Next,
    },
}

impl std::fmt::Display for Notice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Warning(message) => write!(f, "{message}"),
            Self::Took { event, tasks } => {
                write!(f, "{} of {}: {tasks} tasks", event.kind(), event.name())
            }
            Self::Merged { event, into } => {
                write!(
                    f,
                    "{} of {}: the same as {into}, which has not ended",
                    event.kind(),
                    event.name()
                )
            }
            Self::Began { event, plugin, attempt } => {
                write!(f, "{plugin} on {}: attempt {attempt}", event.name())
            }
            Self::Ended { event, plugin, attempt, report, next } => {
                write!(
                    f,
                    "{plugin} on {}: attempt {attempt} {}: {}",
                    event.name(),
                    report.outcome.class(),
                    report.outcome.message()
                )?;
                match next {
                    Next::Done => Ok(()),
                    Next::Dead => write!(f, "; dead letter"),
                    Next::Lost => write!(f, "; lost"),
                    Next::Refused { .. } => {
                        write!(f, "; kept, and tried again after that is fixed")
                    }
                    Next::Retry { after } => write!(f, "; retry in {:.1} s", after.as_secs_f64()),
                    Next::Again { why: Uncounted::Outage, .. } => {
                        write!(f, "; not counted: its service is unavailable")
                    }
                    Next::Again { why: Uncounted::Neighbour, .. } => {
                        write!(f, "; not counted: it is run again alone")
                    }
                    Next::Again { after, why: Uncounted::Progress } => write!(
                        f,
                        "; not counted: it made progress; retry in {:.1} s",
                        after.as_secs_f64()
                    ),
                }
            }
        }
    }
}
