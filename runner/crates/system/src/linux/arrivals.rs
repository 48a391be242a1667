//! Reports by name which files arrive in the directories of the spool (inotify(7)).
//!
//! Only renames are reported, because hooks commit by a rename; other changes there cost nothing.
//! The caller lists the directories if something was missed: if a directory cannot be watched, or
//! too many files arrived at once.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use crate::arrivals::Arrived;

/// The size of the buffer for the events of one read. An event with the longest name has 272 bytes.
const BUFFER: usize = 16 << 10;

/// Watches directories.
#[derive(Debug)]
pub struct Arrivals {
    queue: OwnedFd,
    directories: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// The kernel's number of the watch; `None` if the directory does not exist.
    watch: Option<i32>,
}

impl Arrivals {
    /// Watches these directories, the spool first. Those that do not exist yet are skipped.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn new<'a>(directories: impl Iterator<Item = &'a Path>) -> std::io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watched = |path: &Path| Watched { path: path.to_owned(), watch: None };
        let mut arrivals = Self { queue, directories: directories.map(watched).collect() };
        arrivals.follow()?;
        Ok(arrivals)
    }

    /// Watches directories that were created meanwhile. Returns whether there was one; the caller
    /// must list it.
    ///
    /// # Errors
    /// The first directory exists and cannot be watched.
    pub fn follow(&mut self) -> std::io::Result<bool> {
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        let mut found = false;
        for (number, directory) in self.directories.iter_mut().enumerate() {
            if directory.watch.is_some() {
                continue;
            }
            match inotify::add_watch(&self.queue, &directory.path, flags) {
                Ok(watch) => {
                    directory.watch = Some(watch);
                    found = true;
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(error) if number == 0 => return Err(error.into()),
                // The caller lists the fallback directories at intervals.
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Returns what has happened since the last call. Does not wait.
    pub fn look(&mut self) -> Arrived {
        let mut arrived = Arrived::default();
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(&self.queue, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            let number =
                self.directories.iter().position(|directory| directory.watch == Some(event.wd()));
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                arrived.more = true;
            }
            let Some(number) = number else { continue };
            let ended = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
            if flags.intersects(ended) {
                arrived.gone |= number == 0;
                if let Some(directory) = self.directories.get_mut(number) {
                    directory.watch = None;
                }
            } else if let Some(name) = event.file_name() {
                arrived.files.push((number, name.to_bytes().to_vec()));
            }
        }
        arrived
    }
}

impl AsFd for Arrivals {
    /// The descriptor is ready for reading when an event is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_renames_are_reported_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, fallback) = (dir.path().join("spool"), dir.path().join("fallback"));
        std::fs::create_dir(&spool).unwrap();
        let paths = [spool.as_path(), &fallback];
        let mut arrivals = Arrivals::new(paths.into_iter()).unwrap();
        std::fs::write(spool.join(".a"), "").unwrap();
        assert_eq!(arrivals.look(), Arrived::default());
        std::fs::rename(spool.join(".a"), spool.join("a")).unwrap();
        std::fs::create_dir(&fallback).unwrap();
        assert_eq!((arrivals.follow().unwrap(), arrivals.follow().unwrap()), (true, false));
        std::fs::rename(spool.join("a"), fallback.join("b")).unwrap();
        let files = vec![(0, b"a".to_vec()), (1, b"b".to_vec())];
        assert_eq!(arrivals.look(), Arrived { files, ..Arrived::default() });
        std::fs::remove_dir(&spool).unwrap();
        assert!(arrivals.look().gone);
        std::fs::create_dir(&spool).unwrap();
        assert!(arrivals.follow().unwrap());
    }
}
