//! Wakes a waiting session when a slot may be free, when another session has ended, or when Nix has
//! exited.
//!
//! A slot is freed by closing a file that was open for writing, which inotify(7) reports as
//! `IN_CLOSE_WRITE`; the file of a session is too. The kernel reports it just before it releases
//! the lock (`__fput` in Linux 6.x), so the woken session checks again shortly afterwards. Without
//! inotify, and on network file systems, sessions check at intervals.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use hookrun_system::closings::Closings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The times after an event at which to check again. At the last one the lock is certainly
/// released.
const AFTER_A_SIGN: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(25)];
/// The interval without an event.
const NOW_AND_THEN: Duration = Duration::from_secs(5);
/// The interval without inotify.
const WITHOUT_SIGNS: Duration = Duration::from_millis(500);

/// The reason why [`SlotWatch::next`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WakeReason {
    /// Check again.
    Look,
    /// The Nix that called does not read replies any longer.
    NixGone,
}

/// Watches directories.
#[derive(Debug)]
pub(crate) struct SlotWatch {
    closings: Option<Closings>,
    /// The number of checks that remain after the last event.
    owed: usize,
}

impl SlotWatch {
    /// Watches these directories. Those that cannot be watched are checked at intervals.
    pub(crate) fn on(directories: &[&Path]) -> Self {
        Self { closings: Closings::new(directories), owed: 0 }
    }

    /// Waits until the next check is due, at most `within`.
    pub(crate) fn next(&mut self, nix: BorrowedFd<'_>, within: Duration) -> WakeReason {
        let owed = AFTER_A_SIGN
            .len()
            .checked_sub(self.owed)
            .and_then(|done| AFTER_A_SIGN.get(done))
            .copied();
        let usual = if self.closings.is_some() { NOW_AND_THEN } else { WITHOUT_SIGNS };
        let patience = owed.unwrap_or(usual).min(within);
        let Ok(timeout) = Timespec::try_from(patience) else { return WakeReason::Look };
        // No events are requested: errors and hang-ups are always reported, and a pipe without a
        // reader is an error (poll(2)).
        let mut fds = vec![PollFd::from_borrowed_fd(nix, PollFlags::empty())];
        let closings = self.closings.as_ref().filter(|_| owed.is_none());
        fds.extend(closings.map(|closings| PollFd::new(closings, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Err(_) => std::thread::sleep(patience.min(WITHOUT_SIGNS)),
            Ok(_) => {
                if fds
                    .first()
                    .is_some_and(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
                {
                    return WakeReason::NixGone;
                }
            }
        }
        let signed = fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
        self.owed = self.owed.saturating_sub(1);
        // Events that arrive meanwhile are read with the next one.
        let may_be_free = |closings: &Closings| closings.any(crate::slots::slot_files::may_be_slot);
        if signed && self.closings.as_ref().is_some_and(may_be_free) {
            self.owed = AFTER_A_SIGN.len();
        }
        WakeReason::Look
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn the_end_of_nix_is_noticed() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut watch = SlotWatch::on(&[]);
        assert_eq!(watch.next(writer.as_fd(), Duration::from_millis(1)), WakeReason::Look);
        drop(reader);
        assert_eq!(watch.next(writer.as_fd(), Duration::from_mins(1)), WakeReason::NixGone);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_closed_slot_wakes_the_session() {
        let directory = tempfile::tempdir().unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        let slot = std::fs::File::create(directory.path().join("ssh:__m-0")).unwrap();
        let mut watch = SlotWatch::on(&[directory.path()]);
        let start = std::time::Instant::now();
        let waking = std::thread::spawn(move || drop(slot));
        assert_eq!(watch.next(writer.as_fd(), Duration::from_mins(1)), WakeReason::Look);
        waking.join().unwrap();
        assert!(watch.owed > 0, "woken by the event, after {:?}", start.elapsed());
        watch.next(writer.as_fd(), Duration::from_mins(1));
        watch.next(writer.as_fd(), Duration::from_mins(1));
        assert_eq!(watch.owed, 0);
    }
}
