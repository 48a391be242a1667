//! Small files that are valid as long as the process that created them lives: sessions
//! ([`crate::slots::sessions`]) and their reservations ([`crate::slots::reservations`]).
//!
//! A file is valid while it is locked (`flock`). The kernel releases the lock when the process
//! ends, however it ends, so a dead session frees its place. The next session that reads the
//! directory deletes its file. A file is locked before it gets its name, so no other process sees
//! an unlocked file of a living one.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::history::now_ms;
use crate::private;

/// The suffix of the name of a complete file.
const SUFFIX: &str = ".json";
/// The size of the largest file that is read. A waiting session names each machine that it waits
/// for.
const MAX_SIZE: u64 = 1 << 20;

/// A file of this process. It is deleted when this value is dropped.
#[derive(Debug)]
pub struct LiveFile {
    /// The locked file.
    _file: OwnedFd,
    directory: OwnedFd,
    name: OsString,
}

impl LiveFile {
    /// Creates a file with `content` in `directory`, which is created if necessary.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn make(directory: &Path, content: &impl Serialize) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Some(builders) = directory.parent() {
            private::directory(builders)?;
        }
        let opened = private::directory(directory)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", std::process::id(), now_ms());
        let hidden = format!(".{name}");
        let file = private::file(&opened, &hidden, OFlags::EXCL)?;
        let name = name + SUFFIX;
        let publish = || -> io::Result<()> {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let text = serde_json::to_vec(content).map_err(io::Error::other)?;
            std::fs::File::from(file.try_clone()?).write_all(&text)?;
            Ok(rustix::fs::renameat(&opened, &hidden, &opened, &name)?)
        };
        publish().inspect_err(|_| {
            let _gone = rustix::fs::unlinkat(&opened, &hidden, AtFlags::empty());
        })?;
        Ok(Self { _file: file, directory: opened, name: name.into() })
    }

    /// Returns its name, which is unique in its directory.
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

impl Drop for LiveFile {
    fn drop(&mut self) {
        let _gone = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

/// Returns the files of living processes in `directory`, with their names, and deletes those of
/// dead ones. Files that cannot be read, and directories of other users, are left out.
pub(crate) fn living<T: DeserializeOwned>(directory: &Path) -> Vec<(OsString, T)> {
    let builders = directory.parent().map(private::opened);
    let (Some(Ok(_)), Ok(directory)) = (builders, private::opened(directory)) else {
        return Vec::new();
    };
    let entries = rustix::fs::Dir::read_from(&directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names
        .filter(|name| name.as_bytes().ends_with(SUFFIX.as_bytes()))
        .filter_map(|name| read(&directory, &name).map(|content| (name, content)))
        .collect()
}

fn read<T: DeserializeOwned>(directory: &OwnedFd, name: &OsStr) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    if !private::is_own(&rustix::fs::fstat(&file).ok()?) {
        return None;
    }
    // A shared lock, so that readers do not mistake each other for the owner.
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        let _gone = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(MAX_SIZE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_living_processes_are_valid_and_others_are_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("below");
        assert!(living::<u32>(&place).is_empty());
        let (one, two) = (LiveFile::make(&place, &1).unwrap(), LiveFile::make(&place, &2).unwrap());
        let numbers = || {
            let mut numbers: Vec<u32> =
                living(&place).into_iter().map(|(_, number)| number).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(numbers(), [1, 2]);
        drop(two);
        assert_eq!(numbers(), [1]);
        // The process was killed: the lock is released, and the file remains.
        let left = place.join("left.json");
        std::fs::copy(place.join(one.name()), &left).unwrap();
        std::fs::write(place.join("not-ours"), "x").unwrap();
        assert_eq!(numbers(), [1]);
        assert!(!left.exists() && place.join("not-ours").exists());
    }
}
