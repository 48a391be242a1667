//! Takes events from the spool into the journal.

use std::collections::BTreeMap;

use super::{Notice, Worker, WorkerError};
use crate::journal::{Incoming, IngestResult, Share};
use crate::spool::{self, Spooled};
use crate::{outputs, roots};
use hookrun_config as config;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::Event;

/// The number of messages about rejected files in a minute. Every user can cause any number of
/// rejected files.
const LINES: u32 = 20;
/// The period of [`LINES`].
const LINES_IN_MS: u64 = 60_000;

/// Counts these messages.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since_ms: u64,
    said: u32,
    left_out: u64,
}

impl Lines {
    fn may_say(&mut self) -> bool {
        let may = self.said < LINES;
        if may {
            self.said += 1;
        } else {
            self.left_out += 1;
        }
        may
    }

    fn take_left_out(&mut self, now_ms: u64) -> u64 {
        if now_ms.abs_diff(self.since_ms) < LINES_IN_MS {
            return 0;
        }
        std::mem::replace(self, Self { since_ms: now_ms, said: 0, left_out: 0 }).left_out
    }
}

/// The number of files that are read in one turn and taken in one transaction: enough to share its
/// sync, and few enough to start the first task soon.
pub(super) const BATCH: usize = 256;
/// The name under which the journal stores the configuration that unwanted events were last matched
/// against.
const MATCHED: &str = "matched";

impl Worker<'_> {
    /// Takes the next events of the spool into the journal, if there are any; returns their number.
    /// There is one batch in each turn of the worker, so that in between runs end and begin, the
    /// service manager is notified, and a request to stop is handled.
    pub(super) fn take_some(&mut self) -> Result<usize, WorkerError> {
        if !self.reader.has_more() {
            return Ok(0);
        }
        if !self.journal.is_in_place() {
            return Err(WorkerError::Gone { path: self.dirs.journal() });
        }
        let scan = self.reader.scan(BATCH);
        for reason in &scan.rejected {
            self.set_aside(reason);
        }
        let events = self.within_shares(scan.events)?;
        if !events.is_empty() {
            self.take(&events)?;
        }
        Ok(events.len())
    }

    fn set_aside(&mut self, reason: &str) {
        self.summary.rejected += 1;
        if self.said_of_rejected.may_say() {
            self.warn(&format!("rejected: {reason}"));
        }
    }

    /// Reports the number of omitted messages, when their minute is over.
    pub(super) fn say_left_out(&mut self) {
        let left_out = self.said_of_rejected.take_left_out(self.now_ms());
        if left_out > 0 {
            let place = self.dirs.rejected();
            self.warn(&format!(
                "{left_out} more files were rejected; the reasons are in {}",
                place.display()
            ));
        }
    }

    /// Leaves events in the spool that exceed a build user's limit of unfinished events, so that a
    /// build cannot fill the disk. They are taken when other events have ended.
    fn within_shares(&mut self, events: Vec<Spooled>) -> Result<Vec<Spooled>, WorkerError> {
        let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
        let mut within = Vec::with_capacity(events.len());
        for spooled in events {
            if spooled.is_trusted {
                within.push(spooled);
                continue;
            }
            let share = match shares.entry(spooled.uid) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(self.journal.share(spooled.uid)?)
                }
            };
            let with = Share { events: share.events + 1, bytes: share.bytes + spooled.bytes };
            match over(with, &self.settings) {
                None => {
                    *share = with;
                    self.over_share.remove(&spooled.uid);
                    within.push(spooled);
                }
                Some(reason) => {
                    self.reader.hold_back(spooled.uid);
                    if self.over_share.insert(spooled.uid) {
                        self.warn(&format!("uid {} {reason}", spooled.uid));
                    }
                }
            }
        }
        Ok(within)
    }

    fn take(&mut self, events: &[Spooled]) -> Result<(), WorkerError> {
        let settled: Vec<Event> =
            events.iter().map(|spooled| outputs::settled(spooled.event.clone())).collect();
        let rows: Vec<Incoming<'_>> = events
            .iter()
            .zip(&settled)
            .map(|(spooled, event)| Incoming {
                event,
                uid: spooled.uid,
                plugins: self.executor.wanted(event),
                // Creates roots that a crash has lost, or that the hook was not allowed to create.
                rooted: roots::make(event),
            })
            .collect();
        let taken = self.journal.take(&rows, self.options.clock.now_ms())?;
        let plugins: Vec<String> =
            rows.into_iter().flat_map(|row| row.plugins).map(|wanted| wanted.plugin).collect();
        self.due.extend(plugins);
        for (spooled, taken) in events.iter().zip(&taken) {
            let event = &spooled.event;
            match taken {
                IngestResult::New(tasks) => {
                    self.summary.taken += 1;
                    (self.observer)(Notice::Took { event, tasks: *tasks });
                }
                IngestResult::Merged(into) => {
                    self.summary.taken += 1;
                    (self.observer)(Notice::Merged { event, into });
                }
                IngestResult::Known { .. } => {}
            }
            if matches!(
                taken,
                IngestResult::New(0)
                    | IngestResult::Merged(_)
                    | IngestResult::Known { ended: true }
            ) {
                roots::remove(event);
            }
            match spooled.remove() {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    (self.observer)(Notice::Warning(&format!(
                        "{} is in the journal, but the file cannot be removed ({error}); remove it",
                        spooled.path().display()
                    )));
                    self.reader.ignore(spooled);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Matches unwanted events again, if the configuration has changed since they were last
    /// matched. Events whose outputs were collected meanwhile are not changed.
    pub(super) fn match_unwanted(&mut self) -> Result<(), WorkerError> {
        let wants = self.executor.wants();
        if self.journal.note(MATCHED)?.as_ref() == Some(&wants) {
            return Ok(());
        }
        let mut after = String::new();
        let mut count = 0_usize;
        loop {
            let events = self.journal.unwanted(&after, BATCH)?;
            let Some(last) = events.last() else { break };
            after.clone_from(&last.id);
            let settled: Vec<Event> = events.into_iter().map(outputs::settled).collect();
            let rows: Vec<Incoming<'_>> = settled
                .iter()
                .filter(|event| outputs::missing(event).is_none())
                .map(|event| (event, self.executor.wanted(event)))
                .filter(|(_, plugins)| !plugins.is_empty())
                .map(|(event, plugins)| Incoming {
                    event,
                    uid: 0,
                    plugins,
                    rooted: roots::make(event),
                })
                .collect();
            self.journal.want(&rows, self.options.clock.now_ms())?;
            count += rows.len();
            self.due
                .extend(rows.into_iter().flat_map(|row| row.plugins).map(|wanted| wanted.plugin));
        }
        self.journal.set_note(MATCHED, &wants)?;
        if count > 0 {
            self.warn(&format!(
                "{count} earlier events without a plugin were queued for the new configuration"
            ));
        }
        Ok(())
    }

    /// Writes the unfinished events of a journal whose file was removed into the spool again, for
    /// the next worker.
    pub(super) fn hand_over_again(&mut self) {
        let events = self.journal.salvage();
        hand_over_again(&self.dirs, &events, self.observer);
    }
}

/// Writes events into the spool again. Their tasks start from the beginning.
pub(super) fn hand_over_again(
    dirs: &Dirs,
    events: &[Event],
    observer: &mut (dyn FnMut(Notice<'_>) + Send),
) {
    for event in events {
        if let Err(error) = spool::put(dirs, event) {
            observer(Notice::Warning(&format!(
                "the event of {} is lost: {error}",
                event.drv_path()
            )));
        }
    }
}

/// Returns which limit is exceeded, if there is one.
fn over(share: Share, settings: &config::Worker) -> Option<String> {
    let config::Worker { max_events_per_user: events, max_bytes_per_user: bytes, .. } = settings;
    let (what, key) = if share.events > *events {
        (format!("{events} unfinished events"), "max-events-per-user")
    } else if share.bytes > *bytes {
        (format!("{bytes} bytes of unfinished events"), "max-bytes-per-user")
    } else {
        return None;
    };
    Some(format!(
        "has {what}, the limit of a build user; further events wait in the spool until some have ended; to allow more, raise `{key}` under [worker]"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_about_rejected_files_are_limited_per_minute() {
        let mut lines = Lines::default();
        assert_eq!(lines.take_left_out(100_000), 0);
        assert_eq!((0..1000).filter(|_| lines.may_say()).count(), 20);
        assert_eq!(lines.take_left_out(100_001), 0, "the minute is not over");
        assert_eq!(lines.take_left_out(160_000), 980);
        assert!(lines.may_say());
    }
}
