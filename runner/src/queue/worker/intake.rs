//! From the spool into the journal.

use std::collections::BTreeMap;

use super::{Notice, Worker, WorkerError};
use crate::config;
use crate::dirs::Dirs;
use crate::event::Event;
use crate::queue::journal::{Incoming, Share, Taken};
use crate::queue::roots;
use crate::queue::spool::{self, Spooled};

/// Events taken in one transaction: enough to share its sync, few enough to start the first soon.
const BATCH: usize = 256;

impl Worker<'_> {
    /// Takes what is in the spool into the journal; gives how many events that were.
    pub(super) fn take_spooled(&mut self) -> Result<u64, WorkerError> {
        let mut count = 0;
        loop {
            let scan = self.reader.scan(BATCH);
            for reason in &scan.rejected {
                self.set_aside(reason);
            }
            if scan.events.is_empty() {
                return Ok(count);
            }
            let events = self.within_shares(scan.events)?;
            self.take(&events)?;
            count += events.len() as u64;
            if !scan.more {
                return Ok(count);
            }
        }
    }

    fn set_aside(&mut self, reason: &str) {
        self.summary.rejected += 1;
        self.warn(&format!("set aside: {reason}"));
    }

    /// Sets aside what is more than a build user may have in the journal: a build must not fill the disk.
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
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(self.journal.share(spooled.uid)?),
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

    /// Puts the unfinished events of a journal whose file is gone into the spool again, for whoever works next.
    pub(super) fn hand_over_again(&mut self) {
        let events = self.journal.salvage();
        hand_over_again(&self.dirs, &events, self.observer);
    }
}

/// Puts events into the spool again. Their tasks begin anew.
pub(super) fn hand_over_again(dirs: &Dirs, events: &[Event], observer: &mut (dyn FnMut(Notice<'_>) + Send)) {
    for event in events {
        if let Err(error) = spool::put(dirs, event) {
            observer(Notice::Warning(&format!("the event of {} is lost: {error}", event.drv_path())));
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
