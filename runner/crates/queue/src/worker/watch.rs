//! Watches files while a worker runs: the spool, and the files that its executor was made from.
//!
//! Watching can fail or miss changes (behind a symbolic link in a parent directory, or on a network
//! file system), so the worker also looks at everything from time to time. Changes are flags: one
//! flag stands for any number of changes.

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

/// Watches directories, and tells what changed.
#[derive(Debug)]
pub(super) struct Watch {
    flags: Arc<Flags>,
    /// None where nothing can be watched.
    watcher: Option<notify::RecommendedWatcher>,
    arrivals: Option<AsyncFd<Descriptor>>,
    spool: PathBuf,
    directories: BTreeSet<PathBuf>,
}

/// tokio wants a number.
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
    /// What came: the number of the directory, and the file's name.
    pub(super) arrived: Vec<(usize, Vec<u8>)>,
    /// The spool is to be listed.
    pub(super) spool: bool,
    /// A file beside one of those that are watched, or that one.
    pub(super) files: bool,
}

impl Watch {
    /// Watches the directories that hooks put events into, the spool first; the second value says
    /// why it cannot be.
    pub(super) fn new<'a>(
        dirs: &Dirs,
        directories: impl Iterator<Item = &'a Path>,
    ) -> (Self, Option<String>) {
        let flags = Arc::new(Flags::default());
        let (theirs, spool) = (Arc::clone(&flags), dirs.spool());
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // What cannot be understood may be anything.
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

    /// Watches the spool that is there now, if it is another one; an error if it cannot be watched.
    pub(super) fn follow_spool(&mut self) -> Option<String> {
        let arrivals = self.arrivals.as_mut()?;
        arrivals.get_mut().0.follow().err().map(|error| error.to_string())
    }

    /// Watches the directories of these files, and no others but the one that the spool is in: a
    /// spool that somebody removes comes again there.
    pub(super) fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = self.watcher.as_mut() else { return };
        // The directory and not the file: editors and package managers put a new file in its place.
        let files = files.iter().chain(std::iter::once(&self.spool));
        let wanted: BTreeSet<PathBuf> =
            files.filter_map(|file| file.parent().map(Path::to_owned)).collect();
        for gone in self.directories.difference(&wanted) {
            let _ended = watcher.unwatch(gone);
        }
        for new in wanted.difference(&self.directories) {
            // Looked at now and then anyway.
            let _watched = watcher.watch(new, notify::RecursiveMode::NonRecursive);
        }
        self.directories = wanted;
    }

    /// Ready when something has changed.
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

#[expect(unsafe_code, reason = "tokio's contract, kept below")]
fn asynchronous(arrivals: Arrivals) -> std::io::Result<AsyncFd<Descriptor>> {
    // SAFETY: the descriptor belongs to the value that is handed over, which keeps it open and
    // never exchanges it for another.
    let registered =
        unsafe { AsyncFd::register_with_interest(Descriptor(arrivals), Interest::READABLE) };
    registered.map_err(std::io::Error::from)
}

/// Ready when something came into the spool.
async fn arrived(arrivals: &mut Option<AsyncFd<Descriptor>>) -> Arrived {
    let Some(arrivals) = arrivals else { return std::future::pending().await };
    loop {
        let Ok(mut ready) = arrivals.readable_mut().await else {
            return std::future::pending().await;
        };
        let arrived = ready.get_inner_mut().0.look();
        // All of it was read: the kernel says when there is more.
        ready.clear_ready();
        if arrived != Arrived::default() {
            return arrived;
        }
    }
}
