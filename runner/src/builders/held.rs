//! A small file that counts for as long as the process that made it lives: who waits
//! ([`super::lease`]), what is taken ([`super::resources`]).
//!
//! The lock (`flock`) is what counts. The kernel drops it with the process, however that ends, so a
//! dead session frees its place; its file is swept away by whoever sees it next. A file is locked
//! before it has its name, so nobody sees an unlocked one of the living.

use std::ffi::{OsStr, OsString};
use std::fs::DirEntry;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::now_ms;

/// What a finished file's name ends in.
const SUFFIX: &str = ".json";
/// Largest file that is read; a waiting session names each machine that it waits for.
const MAX_SIZE: u64 = 1 << 20;

/// A file of this process. Dropping it takes it away.
#[derive(Debug)]
pub struct Held {
    /// Held locked.
    _file: OwnedFd,
    path: PathBuf,
}

impl Held {
    /// Makes one in `directory`, which is made too, with `content`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn make(directory: &Path, content: &impl Serialize) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", std::process::id(), now_ms());
        let hidden = directory.join(format!(".{name}"));
        let path = directory.join(name + SUFFIX);
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&hidden, flags, Mode::from_raw_mode(0o644))?;
        let publish = || -> io::Result<()> {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let text = serde_json::to_vec(content).map_err(io::Error::other)?;
            std::fs::File::from(file.try_clone()?).write_all(&text)?;
            std::fs::rename(&hidden, &path)
        };
        publish().inspect_err(|_| {
            let _gone = std::fs::remove_file(&hidden);
        })?;
        Ok(Self { _file: file, path })
    }

    /// Its name, which no other one in its directory has.
    pub fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// The files of the living in `directory`, with their names. What the dead left is swept away where
/// this user may; what cannot be read is left out.
pub fn living<T: DeserializeOwned>(directory: &Path) -> Vec<(OsString, T)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let finished =
        |entry: &DirEntry| entry.file_name().as_encoded_bytes().ends_with(SUFFIX.as_bytes());
    entries
        .filter(finished)
        .filter_map(|entry| Some((entry.file_name(), read(&entry.path())?)))
        .collect()
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    // A shared lock: two that look at once do not take each other for the owner.
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        let _gone = std::fs::remove_file(path);
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
    fn the_living_count_and_the_dead_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("below");
        assert!(living::<u32>(&place).is_empty());
        let (one, two) = (Held::make(&place, &1).unwrap(), Held::make(&place, &2).unwrap());
        let numbers = || {
            let mut numbers: Vec<u32> =
                living(&place).into_iter().map(|(_, number)| number).collect();
            numbers.sort_unstable();
            numbers
        };
        assert_eq!(numbers(), [1, 2]);
        drop(two);
        assert_eq!(numbers(), [1]);
        // As if its process had been killed: the lock goes, the file stays.
        let left = place.join("left.json");
        std::fs::copy(&one.path, &left).unwrap();
        std::fs::write(place.join("not-ours"), "x").unwrap();
        assert_eq!(numbers(), [1]);
        assert!(!left.exists() && place.join("not-ours").exists());
    }
}
