//! Stores the results of [`super::examine`] beside the compiled plugins, in one file for each
//! component and `config` table. For each file that a plugin was read from, the digest of the
//! component is stored too, so that a hook can identify a plugin without opening it.
//!
//! A user who can write here can make hookrun believe anything about a plugin except its grants.
//! The directory is therefore checked like that of the compiled plugins
//! ([`super::compiled_cache`]), and an entry that does not match is a miss.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::cache_directory::{self, Leftovers};
use super::examine::Examined;

/// The version of the file format and of the examination. Increment it when either changes, so that
/// older entries are not used. It is not the version of hookrun, because an unexamined gate would
/// stop the first build after each upgrade.
const FORMAT: &str = "hookrun-verdict-2";
/// Maximum size in bytes of a file that is read.
const MAX_LENGTH: u64 = 2 << 20;

/// The directory of examination results.
#[derive(Debug, Clone)]
pub struct ExaminationCache {
    directory: PathBuf,
}

/// Identifies the content of a file at one time: path, device, inode, size and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp(String);

impl FileStamp {
    /// Returns the stamp of the file at `path` with this metadata.
    pub fn of(path: &Path, found: &std::fs::Metadata) -> Self {
        let state = [
            found.dev(),
            found.ino(),
            found.len(),
            found.mtime().unsigned_abs(),
            found.mtime_nsec().unsigned_abs(),
            found.ctime().unsigned_abs(),
            found.ctime_nsec().unsigned_abs(),
        ];
        let mut sha = Sha256::new();
        sha.update(FORMAT);
        for number in state {
            sha.update(number.to_le_bytes());
        }
        sha.update(path.as_os_str().as_encoded_bytes());
        Self(format!("{:x}", sha.finalize()))
    }
}

impl ExaminationCache {
    /// Returns the cache in `directory`, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the name of the file for the component with this digest and this `config` table.
    pub(super) fn key(digest: &str, config: &Value) -> String {
        let mut sha = Sha256::new();
        sha.update(FORMAT);
        sha.update(digest);
        sha.update(config.to_string());
        format!("{:x}", sha.finalize())
    }

    /// Returns the stored result for this key.
    pub(super) fn get(&self, key: &str) -> Option<Examined> {
        serde_json::from_slice(&self.read(key)?).ok()
    }

    /// Stores a result. If that fails, the component is examined again next time.
    pub(super) fn put(&self, key: &str, examined: &Examined) {
        if let Ok(text) = serde_json::to_vec(examined) {
            self.write(key, &text);
        }
    }

    /// Returns the digest of the component that was read from the file with this stamp.
    pub(super) fn digest(&self, stamp: &FileStamp) -> Option<String> {
        String::from_utf8(self.read(&stamp.0)?).ok()
    }

    pub(super) fn remember(&self, stamp: &FileStamp, digest: &str) {
        self.write(&stamp.0, digest.as_bytes());
    }

    /// Removes entries that are neither in `configured` nor kept by `leftovers`.
    pub(super) fn prune(&self, configured: &BTreeSet<String>, leftovers: Leftovers) {
        cache_directory::prune(&self.directory, configured, leftovers);
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        let directory: OwnedFd = cache_directory::open_directory(&self.directory).ok()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&directory, name, flags, Mode::empty()).ok()?;
        let file = std::fs::File::from(file);
        cache_directory::trusted(&file)?;
        let mut content = Vec::new();
        (&file).take(MAX_LENGTH).read_to_end(&mut content).ok()?;
        cache_directory::renew(&file);
        Some(content)
    }

    fn write(&self, name: &str, content: &[u8]) {
        // A result that cannot be stored is found again by the next examination.
        let _kept = cache_directory::open_directory(&self.directory)
            .map(|directory| cache_directory::put(&directory, name, &[content]));
    }
}

impl FileStamp {
    /// Returns the name of the stamp's file.
    pub(super) fn name(&self) -> &str {
        &self.0
    }
}
