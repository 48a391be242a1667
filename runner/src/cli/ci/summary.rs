//! The result of one `hookrun ci`: as text, as JSON, and as an exit code.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::output;
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::PluginCounts;

/// The result, as `--report` writes it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Summary {
    /// The exit code of the command; 128 plus the number of the signal that ended it.
    pub(super) command_exit: i32,
    /// The number of events since the command began.
    pub(super) events: u64,
    /// The number of these that were found in Nix's database, because the daemon ignores this
    /// user's hooks.
    pub(super) found_afterwards: usize,
    /// The size of their outputs in bytes, according to Nix's database.
    pub(super) output_bytes: Option<u64>,
    /// The number of events that no worker has taken.
    pub(super) spooled: usize,
    /// The counts of tasks for each plugin.
    pub(super) plugins: Vec<PluginCounts>,
    /// The number of events that a plugin wants and that became no task.
    pub(super) forgotten: usize,
    /// The number of spool files that were rejected meanwhile.
    pub(super) set_aside: usize,
    /// Whether no task is left that could still run.
    pub(super) finished: bool,
    /// The state directory.
    pub(super) state: PathBuf,
    /// The time spent waiting after the command had ended, in milliseconds.
    pub(super) waited_ms: u64,
}

impl Summary {
    /// Returns the sum over all plugins.
    pub(super) fn count(&self, of: impl Fn(&PluginCounts) -> u64) -> u64 {
        self.plugins.iter().map(of).sum()
    }

    fn dead(&self) -> u64 {
        self.count(|plugin| plugin.dead + plugin.lost)
    }

    fn refused(&self) -> u64 {
        self.count(|plugin| plugin.refused)
    }

    /// Returns whether nothing failed and nothing is left.
    pub(super) fn all_done(&self) -> bool {
        self.finished
            && self.dead() == 0
            && self.refused() == 0
            && self.forgotten == 0
            && self.set_aside == 0
    }

    /// Returns the exit code: the command's, or else 1 if work is left or failed.
    pub(super) fn exit(&self) -> Exit {
        match u8::try_from(self.command_exit) {
            Ok(0) if self.all_done() => Exit::Done,
            Ok(0) | Err(_) => Exit::Failed,
            Ok(code) => Exit::Command(code),
        }
    }
}

impl std::fmt::Display for Summary {
    /// Formats the summary as one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Summary {
            command_exit,
            events,
            found_afterwards,
            output_bytes,
            spooled,
            plugins,
            forgotten,
            set_aside,
            finished,
            state: _,
            waited_ms,
        } = self;
        let mut text = match events {
            0 if *spooled == 0 => "no build was reported".to_owned(),
            1 => "1 event".to_owned(),
            events => format!("{events} events"),
        };
        if let Some(bytes) = output_bytes.filter(|bytes| *bytes > 0) {
            let _ = write!(text, " ({} of outputs)", output::bytes(bytes));
        }
        if *found_afterwards > 0 {
            let _ = write!(text, ", {found_afterwards} found in Nix's database");
        }
        if *spooled > 0 {
            let _ = write!(text, ", {spooled} not taken by a worker");
        }
        for PluginCounts {
            plugin,
            due,
            waiting,
            running,
            done,
            dead,
            lost,
            refused,
            oldest_ms: _,
            next_ms: _,
        } in plugins
        {
            let counts = [
                (*done, "done"),
                (due + waiting + running, "unfinished"),
                (*dead, "dead"),
                (*lost, "lost"),
                (*refused, "refused"),
            ];
            let counts: Vec<String> = counts
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, word)| format!("{count} {word}"))
                .collect();
            let _ = write!(text, "; {plugin}: {}", counts.join(", "));
        }
        if plugins.is_empty() && *events > 0 && *forgotten == 0 {
            text.push_str("; no plugin of the configuration takes them");
        }
        if *forgotten > 0 {
            let _ = write!(
                text,
                "; {forgotten} reached no plugin, because the worker had another configuration; run `hookrun sync --force` to queue them again"
            );
        }
        if *set_aside > 0 {
            let _ = write!(text, "; {set_aside} rejected, see `hookrun status`");
        }
        if *waited_ms >= 1000 {
            let _ = write!(text, "; waited {}", output::duration(waited_ms / 1000 * 1000));
        }
        if !finished {
            text.push_str("; unfinished tasks stay in the queue, see `hookrun queue list`");
        }
        if self.dead() + self.refused() > 0 {
            text.push_str("; for the reasons see `hookrun log --outcome failed`");
        }
        if *command_exit != 0 {
            let _ = write!(text, "; the command failed ({command_exit})");
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_command_or_reports_unfinished_work() {
        let summary = |command_exit, finished, dead, refused| {
            let plugins = vec![PluginCounts {
                plugin: "cache".to_owned(),
                done: 2,
                dead,
                refused,
                ..PluginCounts::default()
            }];
            Summary { command_exit, events: 3, finished, plugins, ..Summary::default() }
        };
        assert_eq!(summary(0, true, 0, 0).exit(), Exit::Done);
        assert_eq!(summary(0, false, 0, 0).exit(), Exit::Failed);
        assert_eq!(summary(0, true, 1, 0).exit(), Exit::Failed);
        assert_eq!(summary(0, true, 0, 1).exit(), Exit::Failed);
        assert_eq!(summary(100, false, 1, 0).exit(), Exit::Command(100));
        insta::assert_snapshot!(summary(0, true, 0, 0).to_string(), @"3 events; cache: 2 done");
        insta::assert_snapshot!(summary(100, false, 1, 0).to_string(), @"3 events; cache: 2 done, 1 dead; unfinished tasks stay in the queue, see `hookrun queue list`; for the reasons see `hookrun log --outcome failed`; the command failed (100)");
        let nothing_done = |forgotten, set_aside| Summary {
            events: 2,
            finished: true,
            forgotten,
            set_aside,
            ..Summary::default()
        };
        assert_eq!(nothing_done(0, 0).exit(), Exit::Done, "nothing was to be done");
        assert_eq!(nothing_done(1, 0).exit(), Exit::Failed);
        assert_eq!(nothing_done(0, 1).exit(), Exit::Failed);
        insta::assert_snapshot!(nothing_done(0, 0).to_string(), @"2 events; no plugin of the configuration takes them");
        insta::assert_snapshot!(nothing_done(1, 1).to_string(), @"2 events; 1 reached no plugin, because the worker had another configuration; run `hookrun sync --force` to queue them again; 1 rejected, see `hookrun status`");
        insta::assert_snapshot!(Summary { finished: true, ..Summary::default() }.to_string(), @"no build was reported");
    }
}
