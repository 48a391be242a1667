//! Reports which files that were open for writing are closed (inotify(7)).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// The size of the buffer for the events of one read.
const BUFFER: usize = 4096;

/// Watches directories.
#[derive(Debug)]
pub struct Closings(OwnedFd);

impl Closings {
    /// Watches these directories; `None` if one of them cannot be watched.
    pub fn new(directories: &[&Path]) -> Option<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        for directory in directories {
            add_watch(&inotify, *directory, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE).ok()?;
        }
        Some(Self(inotify))
    }

    /// Reads all pending events. Returns whether one is about a file of interest, or has no name.
    pub fn any(&self, is_of_interest: impl Fn(&[u8]) -> bool) -> bool {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(self.0.as_fd(), &mut buffer);
        let mut found = false;
        // Ends with EAGAIN.
        while let Ok(event) = reader.next() {
            found |= event.file_name().is_none_or(|name| is_of_interest(name.to_bytes()));
        }
        found
    }
}

impl AsFd for Closings {
    /// The descriptor is ready for reading when an event is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
