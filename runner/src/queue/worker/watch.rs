//! What changes on disk while a worker runs: the spool, and the files that its executor was made
//! from.
//!
//! Watching may fail, and miss things (a directory that is a symbolic link somewhere above, a
//! network file system); the worker looks at everything now and then anyway. Changes are flags: one
//! stands for many.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::Watcher as _;
use tokio::sync::Notify;

/// Watches directories, and tells which kind of thing changed.
#[derive(Debug)]
pub(super) struct Watch {
    flags: Arc<Flags>,
    /// None where nothing can be watched.
    watcher: Option<notify::RecommendedWatcher>,
    spool: PathBuf,
    /// The spool directory that is watched: it may be removed and made again.
    inode: Option<(u64, u64)>,
    directories: BTreeSet<PathBuf>,
}

#[derive(Debug, Default)]
struct Flags {
    spool: AtomicBool,
    files: AtomicBool,
    wake: Notify,
}

/// What has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Something came into the spool.
    pub(super) spool: bool,
    /// A file beside one of those that are watched, or that one.
    pub(super) files: bool,
}

impl Watch {
    /// Watches the spool; the second value says why it cannot be.
    pub(super) fn new(spool: PathBuf) -> (Self, Option<String>) {
        let flags = Arc::new(Flags::default());
        let (theirs, directory) = (Arc::clone(&flags), spool.clone());
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // What cannot be understood may be anything.
            let (spool, files) = event.map_or((true, true), |event| {
                let read = matches!(
                    event.kind,
                    notify::EventKind::Access(notify::event::AccessKind::Open(_))
                );
                let in_spool = event.paths.iter().any(|path| path.starts_with(&directory));
                (in_spool && !read, !in_spool && !read)
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
        let (watcher, error) = match made {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut watch = Self { flags, watcher, spool, inode: None, directories: BTreeSet::new() };
        // A spool that somebody removes comes again there.
        watch.follow(&[]);
        let error = error.or_else(|| watch.follow_spool());
        (watch, error)
    }

    /// Watches the spool that is there now, if it is another one; an error if it cannot be watched.
    pub(super) fn follow_spool(&mut self) -> Option<String> {
        let inode = inode(&self.spool);
        let watcher = self.watcher.as_mut()?;
        if inode.is_none() || inode == self.inode {
            return None;
        }
        // Of a directory that is gone there is nothing to end.
        let _ended = watcher.unwatch(&self.spool);
        let watched = watcher.watch(&self.spool, notify::RecursiveMode::NonRecursive);
        self.inode = inode;
        self.flags.spool.store(true, Ordering::Release);
        watched.err().map(|error| error.to_string())
    }

    /// Watches the directories of these files, and no others but the spool and the directory it is
    /// in.
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
    pub(super) async fn changed(&self) -> Changed {
        loop {
            let changed = Changed {
                spool: self.flags.spool.swap(false, Ordering::AcqRel),
                files: self.flags.files.swap(false, Ordering::AcqRel),
            };
            if changed != Changed::default() {
                return changed;
            }
            self.flags.wake.notified().await;
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
