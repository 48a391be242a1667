//! Messages of a worker for a log or a progress bar.

use crate::retry::{Next, Uncounted};
use hookrun_nix::event::Event;
use hookrun_nix::outcome::RunReport;

/// A message for a log or a progress bar.
#[derive(Debug)]
pub enum Notice<'a> {
    /// A problem: a file was rejected, the journal was damaged, or the spool cannot be watched.
    Warning(&'a str),
    /// An event was taken, with this number of tasks.
    Took {
        /// The event.
        event: &'a Event,
        /// The number of its tasks.
        tasks: usize,
    },
    /// An event was merged into an earlier equal event.
    Merged {
        /// The event.
        event: &'a Event,
        /// The id of the earlier event.
        into: &'a str,
    },
    /// An attempt begins.
    Began {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// The number of the attempt, from 1.
        attempt: u32,
    },
    /// An attempt ended.
    Ended {
        /// The event.
        event: &'a Event,
        /// The plugin's name.
        plugin: &'a str,
        /// The number of the attempt, from 1.
        attempt: u32,
        /// The result of the run.
        report: &'a RunReport,
        /// The next step of the task.
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
                        write!(f, "; kept, and tried again after the fix")
                    }
                    Next::Retry { after } => write!(f, "; retry in {:.1} s", after.as_secs_f64()),
                    Next::Again { why: Uncounted::Outage, .. } => {
                        write!(f, "; not counted: its service is unavailable")
                    }
                    Next::Again { why: Uncounted::Neighbour, .. } => {
                        write!(f, "; not counted: it runs again alone")
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
