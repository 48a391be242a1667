//! From the spool into the journal.

use std::collections::BTreeMap;

use super::{Notice, Worker, WorkerError};
use crate::config;
use crate::dirs::Dirs;
use crate::event::Event;
use crate::queue::journal::{Incoming, Share, Taken};
use crate::queue::roots;
use crate::queue::spool::{self, Spooled};

/// Files looked at in one turn, and so events taken in one transaction: enough to share its sync,
/// few enough to start the first soon.
pub(super) const BATCH: usize = 256;

impl Worker<'_> {
    /// Takes the next events of the spool into the journal, if there are more; gives how many. One
    /// batch a turn of the worker: meanwhile runs end and begin, the service manager hears that all
    /// is well, and who asks the worker to stop is heard.
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
        self.warn(&format!("set aside: {reason}"));
    }

    /// Sets aside what is more than a build user may have in the journal: a build must not fill the
    /// disk.
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
                    within.push(spooled);
                }
                Some(reason) => {
                    let reason = format!("uid {} {reason}", spooled.uid);
                    let shown = self.reader.reject(&spooled.path, &reason);
                    self.set_aside(&shown);
                }
            }
        }
        Ok(within)
    }

    fn take(&mut self, events: &[Spooled]) -> Result<(), WorkerError> {
        let rows: Vec<Incoming<'_>> = events
            .iter()
            .map(|spooled| Incoming {
                event: &spooled.event,
                uid: spooled.uid,
                plugins: self.executor.wanted(&spooled.event),
                // Roots that a crash lost, or that the hook might not make, are made here.
                rooted: roots::make(&spooled.event),
            })
            .collect();
        let taken = self.journal.take(&rows, self.options.clock.now_ms())?;
        let plugins: Vec<String> =
            rows.into_iter().flat_map(|row| row.plugins).map(|wanted| wanted.plugin).collect();
        self.due.extend(plugins);
        for (spooled, taken) in events.iter().zip(&taken) {
            let event = &spooled.event;
            match taken {
                Taken::New(tasks) => {
                    self.summary.taken += 1;
                    (self.observer)(Notice::Took { event, tasks: *tasks });
                }
                Taken::Merged(into) => {
                    self.summary.taken += 1;
                    (self.observer)(Notice::Merged { event, into });
                }
                Taken::Known { .. } => {}
            }
            if matches!(taken, Taken::New(0) | Taken::Merged(_) | Taken::Known { ended: true }) {
                roots::remove(event);
            }
            match std::fs::remove_file(&spooled.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let path = spooled.path.display();
                    (self.observer)(Notice::Warning(&format!(
                        "{path} is in the journal and cannot be removed ({error}); remove it"
                    )));
                    self.reader.ignore(spooled.path.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts the unfinished events of a journal whose file is gone into the spool again, for whoever
    /// works next.
    pub(super) fn hand_over_again(&mut self) {
        let events = self.journal.salvage();
        hand_over_again(&self.dirs, &events, self.observer);
    }
}

/// Puts events into the spool again. Their tasks begin anew.
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

/// What is over, if so much is too much.
fn over(share: Share, settings: &config::Worker) -> Option<String> {
    let config::Worker { max_events_per_user: events, max_bytes_per_user: bytes, .. } = settings;
    if share.events > *events {
        Some(format!(
            "has {events} events in the journal already; raise `max-events-per-user` under [worker] if they are right"
        ))
    } else if share.bytes > *bytes {
        Some(format!(
            "has {bytes} bytes of events in the journal already; raise `max-bytes-per-user` under [worker] if they are right"
        ))
    } else {
        None
    }
}
