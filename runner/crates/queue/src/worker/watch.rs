//! Watches files while a worker runs: the spool, and the files that its executor was made from.
//!
//! Watching can fail or miss changes (behind a symbolic link in a parent directory, or on a network
//! file system), so the worker also checks everything at intervals. Changes are flags: one flag
//! represents any number of changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::Watcher as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::arrivals::{Arrivals, Arrived};
use hookrun_nix::dirs::Dirs;

/// Watches directories, and reports changes.
#[derive(Debug)]
pub(super) struct FileWatch {
    flags: Arc<Flags>,
    /// None if nothing can be watched.
    watcher: Option<notify::RecommendedWatcher>,
    arrivals: Option<AsyncFd<Descriptor>>,
    spool: PathBuf,
    directories: BTreeSet<PathBuf>,
}

/// Implements `AsRawFd`, which tokio requires.
#[derive(Debug)]
struct Descriptor(Arrivals);

impl std::os::fd::AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

#[derive(Debug, Default)]
struct Flags {
    spool: AtomicBool,
    files: AtomicBool,
    wake: Notify,
}

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Files that arrived: the index of the directory, and the file's name.
    pub(super) arrived: Vec<(usize, Vec<u8>)>,
    /// Whether the spool must be listed.
    pub(super) spool: bool,
    /// Whether a watched file, or another file in its directory, has changed.
    pub(super) files: bool,
}

impl FileWatch {
    /// Watches the directories into which hooks write events, the spool first. The second value is
    /// the error if they cannot be watched.
    pub(super) fn new<'a>(
        dirs: &Dirs,
        directories: impl Iterator<Item = &'a Path>,
    ) -> (Self, Option<String>) {
        let flags = Arc::new(Flags::default());
        let (theirs, spool) = (Arc::clone(&flags), dirs.spool());
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An event that cannot be interpreted may be any change.
            let (spool, files) = event.map_or((true, true), |event| {
                let read = matches!(
                    event.kind,
                    notify::EventKind::Access(notify::event::AccessKind::Open(_))
                );
                let is_spool = event.paths.contains(&spool);
                (is_spool && !read, !is_spool && !read)
            });
            if spool {
                theirs.spool.store(true, Ordering::Release);
            }
            if files {
                theirs.files.store(true, Ordering::Release);
            }
            if spool || files {
                theirs.wake.notify_one();
            }
        });
        let arrivals = Arrivals::new(directories).and_then(asynchronous);
        let (arrivals, error) = match arrivals {
            Ok(arrivals) => (Some(arrivals), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let watch = Self {
            flags,
            watcher: made.ok(),
            arrivals,
            spool: dirs.spool(),
            directories: BTreeSet::new(),
        };
        (watch, error)
    }

    /// Watches the current spool, if it was replaced; returns an error if it cannot be watched.
    pub(super) fn follow_spool(&mut self) -> Option<String> {
        let arrivals = self.arrivals.as_mut()?;
        arrivals.get_mut().0.follow().err().map(|error| error.to_string())
    }

    /// Watches the directories of these files, and the parent of the spool, because a removed spool
    /// is created again there. Stops watching all others.
    pub(super) fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = self.watcher.as_mut() else { return };
        // The directory and not the file, because editors and package managers replace files.
        let files = files.iter().chain(std::iter::once(&self.spool));
        let wanted: BTreeSet<PathBuf> =
            files.filter_map(|file| file.parent().map(Path::to_owned)).collect();
        for gone in self.directories.difference(&wanted) {
            let _ended = watcher.unwatch(gone);
        }
        for new in wanted.difference(&self.directories) {
            // Unwatched directories are checked at intervals.
            let _watched = watcher.watch(new, notify::RecursiveMode::NonRecursive);
        }
        self.directories = wanted;
    }

    /// Waits until something has changed.
    pub(super) async fn changed(&mut self) -> Changed {
        let Self { flags, arrivals, .. } = self;
        loop {
            let spool = flags.spool.swap(false, Ordering::AcqRel);
            let files = flags.files.swap(false, Ordering::AcqRel);
            if spool || files {
                return Changed { spool, files, ..Changed::default() };
            }
            tokio::select! {
                arrived = arrived(arrivals) => {
                    let Arrived { files, more, gone } = arrived;
                    return Changed { arrived: files, spool: more || gone, files: false };
                }
                () = flags.wake.notified() => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "tokio's contract, see the comment below")]
fn asynchronous(arrivals: Arrivals) -> std::io::Result<AsyncFd<Descriptor>> {
    // SAFETY: the descriptor belongs to the value that is passed, which keeps it open and never
    // replaces it.
    let registered =
        unsafe { AsyncFd::register_with_interest(Descriptor(arrivals), Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// Waits until a file arrives in the spool.
async fn arrived(arrivals: &mut Option<AsyncFd<Descriptor>>) -> Arrived {
    let Some(arrivals) = arrivals else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = arrivals.readable_mut().await else {
            return std::future::pending().await;
        };
        let arrived = ready.get_inner_mut().0.look();
        // Everything was read, so the next event of the kernel is awaited.
        ready.clear_ready();
        if arrived != Arrived::default() {
            return arrived;
        }
    }
}
