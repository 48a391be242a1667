//! The states of tasks, as words in the database and in commands.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::ToSqlOutput;

/// A task's state in the column `tasks.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Pending,
    Done,
    Dead,
    Lost,
    Refused,
}

impl ToSql for Stored {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }))
    }
}

/// A task's state as commands show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// May run now.
    Due,
    /// Waits for its time, for another task, or for its plugin's circuit breaker.
    Waiting,
    /// Running.
    Running,
    /// Ended successfully.
    Done,
    /// Failed for the last time: a dead letter.
    Dead,
    /// Cannot run any longer, because its outputs or its event are gone.
    Lost,
    /// Kept until the operator fixes something.
    Refused,
    /// Removed by the operator; only its attempts are left.
    Dropped,
}

impl TaskState {
    /// Returns the word for tables and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }

    /// Parses a word of a query. A damaged state counts as due, because the worker makes such a
    /// task pending when it starts.
    pub(super) fn from_query(word: &str) -> Self {
        match word {
            "waiting" => Self::Waiting,
            "running" => Self::Running,
            "done" => Self::Done,
            "dead" => Self::Dead,
            "lost" => Self::Lost,
            "refused" => Self::Refused,
            "dropped" => Self::Dropped,
            _ => Self::Due,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_read_from_its_own_word() {
        for state in [
            TaskState::Due,
            TaskState::Waiting,
            TaskState::Running,
            TaskState::Done,
            TaskState::Dead,
            TaskState::Lost,
            TaskState::Refused,
            TaskState::Dropped,
        ] {
            assert_eq!(TaskState::from_query(state.as_str()), state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(TaskState::from_query("damaged"), TaskState::Due);
    }
}
