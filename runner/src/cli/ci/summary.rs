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
    /// What the command returned; 128 and the signal's number if one ended it.
    pub(super) command_exit: i32,
    /// Events handed over since the command began.
    pub(super) events: u64,
    /// Of these, found in Nix's database because the daemon ignores this user's hooks.
    pub(super) found_afterwards: usize,
    /// Bytes of their outputs, as Nix's database counts them.
    pub(super) output_bytes: Option<u64>,
    /// Events that no worker has taken.
    pub(super) spooled: usize,
    /// Tasks of these events.
    pub(super) plugins: Vec<PluginCounts>,
    /// Events that a plugin wants and that became no task.
    pub(super) forgotten: usize,
    /// Spool files that were set aside meanwhile.
    pub(super) set_aside: usize,
    /// Whether nothing is left that could still be done.
    pub(super) finished: bool,
    /// Where the queue is.
    pub(super) state: PathBuf,
    /// Milliseconds that were spent waiting after the command had ended.
    pub(super) waited_ms: u64,
}

impl Summary {
    /// The sum over all plugins.
    pub(super) fn count(&self, of: impl Fn(&PluginCounts) -> u64) -> u64 {
        self.plugins.iter().map(of).sum()
    }

    fn dead(&self) -> u64 {
        self.count(|plugin| plugin.dead + plugin.lost)
    }

    fn refused(&self) -> u64 {
        self.count(|plugin| plugin.refused)
    }

    /// Whether nothing failed and nothing is left.
    pub(super) fn all_done(&self) -> bool {
        self.finished
            && self.dead() == 0
            && self.refused() == 0
            && self.forgotten == 0
            && self.set_aside == 0
    }

    /// The exit code: the command's, or what is left.
    pub(super) fn exit(&self) -> Exit {
        match u8::try_from(self.command_exit) {
            Ok(0) if self.all_done() => Exit::Done,
            Ok(0) | Err(_) => Exit::Failed,
            Ok(code) => Exit::Command(code),
        }
    }
}

impl std::fmt::Display for Summary {
    /// One line.
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
                "; {forgotten} went to no plugin, because the worker had another configuration: \
                 `hookrun sync --force` hands them over again"
            );
        }
        if *set_aside > 0 {
            let _ = write!(text, "; spool files set aside: {set_aside}, see `hookrun status`");
        }
        if *waited_ms >= 1000 {
            let _ = write!(text, "; waited {}", output::duration(waited_ms / 1000 * 1000));
        }
        if !finished {
            text.push_str("; unfinished tasks stay in the queue: see `hookrun queue list`");
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
    fn the_exit_code_is_the_commands_or_tells_of_unfinished_work() {
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
        insta::assert_snapshot!(summary(100, false, 1, 0).to_string(), @"3 events; cache: 2 done, 1 dead; unfinished tasks stay in the queue: see `hookrun queue list`; for the reasons see `hookrun log --outcome failed`; the command failed (100)");
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
        insta::assert_snapshot!(nothing_done(1, 1).to_string(), @"2 events; 1 went to no plugin, because the worker had another configuration: `hookrun sync --force` hands them over again; spool files set aside: 1, see `hookrun status`");
        insta::assert_snapshot!(Summary { finished: true, ..Summary::default() }.to_string(), @"no build was reported");
    }
}
