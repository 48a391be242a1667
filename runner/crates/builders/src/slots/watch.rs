//! Wakes a waiting session when a slot may be free, when another session has ended, or when Nix is
//! gone.
//!
//! A slot is freed by closing a file that was open for writing, which inotify(7) reports as
//! `IN_CLOSE_WRITE`; the file of a session is too. The kernel reports it just before it drops the
//! lock (`__fput` in Linux 6.x), so the woken session looks again a little later. Without inotify,
//! and on network file systems, sessions look at intervals.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Times after an event at which to look again. At the last one the lock is certainly dropped.
const AFTER_A_SIGN: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(25)];
/// Interval without an event.
const NOW_AND_THEN: Duration = Duration::from_secs(5);
/// Interval without inotify.
const WITHOUT_SIGNS: Duration = Duration::from_millis(500);

/// Why [`Watch::next`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Look again.
    Look,
    /// The Nix that called no longer reads our replies.
    NixGone,
}

/// Watches directories.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Option<OwnedFd>,
    /// Number of looks that are left after the last event.
    owed: usize,
}

impl Watch {
    /// Watches these directories. Those that cannot be watched are read at intervals.
    pub(crate) fn on(directories: &[&Path]) -> Self {
        Self { inotify: inotify(directories), owed: 0 }
    }

    /// Waits until it is time to look, at most `within`.
    pub(crate) fn next(&mut self, nix: BorrowedFd<'_>, within: Duration) -> Woken {
        let owed = AFTER_A_SIGN
            .len()
            .checked_sub(self.owed)
            .and_then(|done| AFTER_A_SIGN.get(done))
            .copied();
        let usual = if self.inotify.is_some() { NOW_AND_THEN } else { WITHOUT_SIGNS };
        let patience = owed.unwrap_or(usual).min(within);
        let Ok(timeout) = Timespec::try_from(patience) else { return Woken::Look };
        // No events are requested: errors and hang-ups are always reported, and a pipe without a
        // reader is an error (poll(2)).
        let mut fds = vec![PollFd::from_borrowed_fd(nix, PollFlags::empty())];
        let inotify = self.inotify.as_ref().filter(|_| owed.is_none());
        fds.extend(inotify.map(|inotify| PollFd::new(inotify, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Err(_) => std::thread::sleep(patience.min(WITHOUT_SIGNS)),
            Ok(_) => {
                if fds
                    .first()
                    .is_some_and(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
                {
                    return Woken::NixGone;
                }
            }
        }
        let signed = fds.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
        self.owed = self.owed.saturating_sub(1);
        // Events that come meanwhile are read with the next one.
        if signed && inotify_told(self.inotify.as_ref()) {
            self.owed = AFTER_A_SIGN.len();
        }
        Woken::Look
    }
}

#[cfg(target_os = "linux")]
fn inotify(directories: &[&Path]) -> Option<OwnedFd> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    for directory in directories {
        add_watch(&inotify, *directory, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE).ok()?;
    }
    Some(inotify)
}

/// Empties the queue of events. Returns whether one of them may mean a free slot.
#[cfg(target_os = "linux")]
fn inotify_told(inotify: Option<&OwnedFd>) -> bool {
    use std::mem::MaybeUninit;
    let Some(inotify) = inotify else { return false };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = rustix::fs::inotify::Reader::new(inotify.as_fd(), &mut buffer);
    let mut told = false;
    // Ends with EAGAIN.
    while let Ok(event) = reader.next() {
        told |= event
            .file_name()
            .is_none_or(|name| crate::slots::slot_files::may_be_slot(name.to_bytes()));
    }
    told
}

#[cfg(not(target_os = "linux"))]
fn inotify(_: &[&Path]) -> Option<OwnedFd> {
    None
}

#[cfg(not(target_os = "linux"))]
fn inotify_told(_: Option<&OwnedFd>) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn nix_that_is_gone_is_noticed() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut watch = Watch::on(&[]);
        assert_eq!(watch.next(writer.as_fd(), Duration::from_millis(1)), Woken::Look);
        drop(reader);
        assert_eq!(watch.next(writer.as_fd(), Duration::from_mins(1)), Woken::NixGone);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_closed_slot_wakes() {
        let directory = tempfile::tempdir().unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        let slot = std::fs::File::create(directory.path().join("ssh:__m-0")).unwrap();
        let mut watch = Watch::on(&[directory.path()]);
        let start = Instant::now();
        let waking = std::thread::spawn(move || drop(slot));
        assert_eq!(watch.next(writer.as_fd(), Duration::from_mins(1)), Woken::Look);
        waking.join().unwrap();
        assert!(watch.owed > 0, "woken by the sign, after {:?}", start.elapsed());
        watch.next(writer.as_fd(), Duration::from_mins(1));
        watch.next(writer.as_fd(), Duration::from_mins(1));
        assert_eq!(watch.owed, 0);
    }
}
