//! A cache of compiled plugins, so that a start maps a file instead of running a compiler (0.1 ms
//! instead of 50 ms for a small Rust plugin, seconds for an interpreter).
//!
//! An entry is native code, so a user who can write it can do whatever this process can. Therefore
//! the directory belongs to the user that runs guests and has mode 0700, and no component of its
//! path is a symlink or can be changed by users other than that one and root. Entries are opened
//! relative to its descriptor, without following links, and checked on the descriptor that is
//! mapped. An entry is renamed into place after fsync and never changed. Its key consists of
//! everything that it depends on: the digest of the component, and the engine's compatibility hash,
//! which covers wasmtime's full version, its settings and the target with its CPU features. The
//! entry also contains the key, and a checksum of the code. An entry that does not match is a miss
//! and never an error. If the directory cannot be trusted, plugins are compiled every time.
//!
//! The age of an entry is reset when it is used. Only [`Cache::prune`] removes entries, but never
//! those of configured plugins.

use std::collections::BTreeSet;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hookrun_system::descriptor;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Result};

use super::cache_directory::{ENTRY_MODE, open_directory, prune, put, renew, trusted};
pub use super::cache_directory::{Leftovers, OF_CONFIGURATION, OF_TESTS};

/// The end of an entry: the key, the checksum, the length of the code before it, and this mark.
const MARK: [u8; 16] = *b"hookrun-entry-03";
/// The length of a key, a SHA-256 in hexadecimal.
pub(super) const KEY_LENGTH: usize = 64;
/// The length of a BLAKE3 checksum. The 35 MiB of an interpreter are checked in ten milliseconds.
const CHECKSUM_LENGTH: usize = blake3::OUT_LEN;
/// The length of key, checksum, length and mark.
const TRAILER_LENGTH: usize = KEY_LENGTH + CHECKSUM_LENGTH + 8 + MARK.len();

/// The interval between attempts to take a lock that another process holds.
const LOCK_TICK: Duration = Duration::from_millis(10);

/// The origin of native code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was found in the cache.
    Mapped,
    /// It was compiled and stored in the cache.
    Compiled,
    /// It was compiled and could not be stored, with the reason.
    NotKept(String),
}

/// Native code, open but not mapped yet.
#[derive(Debug)]
pub struct Code {
    file: File,
    /// Its origin.
    pub origin: Origin,
}

/// The cache of compiled plugins.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Returns the cache in `directory`, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the native code of the component with this [`digest`], from the cache, or from
    /// `compile`, whose result is stored. Maps nothing. If several processes need the same code,
    /// one compiles it and the others wait for at most `patience`.
    ///
    /// # Errors
    /// Returns the errors of `compile`, or an error if there is no memory for its result.
    pub fn code<E: From<std::io::Error>>(
        &self,
        engine: &Engine,
        digest: &str,
        patience: Duration,
        compile: impl FnOnce() -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<Code, E> {
        let key = key(engine, digest);
        let directory = open_directory(&self.directory);
        let found = |directory: &OwnedFd| {
            find(directory, &key).map(|file| Code { file, origin: Origin::Mapped })
        };
        let mut _only_one = None;
        if let Ok(directory) = &directory {
            if let Some(code) = found(directory) {
                return Ok(code);
            }
            if !patience.is_zero() {
                _only_one = Compiling::begin(directory, &key, patience);
                if let Some(code) = found(directory) {
                    return Ok(code);
                }
            }
        }
        let code = compile()?;
        let kept = directory.as_ref().map_err(Clone::clone).and_then(|directory| {
            let failed =
                |error: &dyn std::fmt::Display| format!("{}: {error}", self.directory.display());
            keep(directory, &key, &code).map_err(|error| failed(&error))?;
            find(directory, &key).ok_or_else(|| failed(&"the file differs from what was written"))
        });
        match kept {
            Ok(file) => Ok(Code { file, origin: Origin::Compiled }),
            Err(reason) => Ok(Code { file: in_memory(&code)?, origin: Origin::NotKept(reason) }),
        }
    }

    /// Returns the directory of the cache.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes entries that are neither in `configured` nor kept by `leftovers`.
    pub fn prune(&self, configured: &BTreeSet<String>, leftovers: Leftovers) {
        prune(&self.directory, configured, leftovers);
    }
}

/// The lock for compiling an entry, held until it is dropped.
#[derive(Debug)]
struct Compiling<'a> {
    directory: &'a OwnedFd,
    name: String,
    _lock: OwnedFd,
}

impl<'a> Compiling<'a> {
    /// Returns `None` if the lock is not released in time, or the file system has no locks; then
    /// two processes compile.
    fn begin(directory: &'a OwnedFd, key: &str, patience: Duration) -> Option<Self> {
        let name = format!(".{key}.lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(directory, &*name, flags, ENTRY_MODE).ok()?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Some(Self { directory, name, _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < patience => {
                    std::thread::sleep(LOCK_TICK);
                }
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        // A waiting process has the file open, and finds the entry.
        let _gone = rustix::fs::unlinkat(self.directory, &*self.name, AtFlags::empty());
    }
}

impl Code {
    /// Maps the code into `engine`, for which it was compiled.
    ///
    /// # Errors
    /// Returns an error if the engine refuses it.
    pub fn map(&self, engine: &Engine) -> Result<Component> {
        map(engine, &self.file)
    }
}

/// Returns code that could not be stored, as a file without a name, which cannot be changed.
fn in_memory(code: &[u8]) -> std::io::Result<File> {
    hookrun_system::memory::sealed("hookrun-code", code)
}

/// Returns the SHA-256 digest of a component in hexadecimal.
pub fn digest(wasm: &[u8]) -> String {
    format!("{:x}", Sha256::digest(wasm))
}

/// Returns the name of the entry for the component with this [`digest`] in this engine.
pub(super) fn key(engine: &Engine, digest: &str) -> String {
    /// Passes the input of `Hash` to SHA-256, because 64 bits are not enough for a key.
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sha = Sha(Sha256::new());
    sha.0.update(MARK);
    sha.0.update(digest);
    // The hash covers the full version of wasmtime: `ModuleVersionStrategy::WasmtimeVersion`,
    // crates/wasmtime/src/config.rs in 48.0.
    engine.precompile_compatibility_hash().hash(&mut sha);
    sha.0.update(std::env::consts::ARCH);
    sha.0.update(std::env::consts::OS);
    format!("{:x}", sha.0.finalize())
}

/// Returns the entry `key`, if it exists and is valid.
fn find(directory: &OwnedFd, key: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(directory, key, flags, Mode::empty()).ok()?);
    let stat = trusted(&file)?;
    if Mode::from_raw_mode(stat.st_mode) != ENTRY_MODE {
        // An entry that was written with another umask could not be mapped by the runner's user.
        rustix::fs::fchmod(&file, ENTRY_MODE).ok()?;
    }
    let size = u64::try_from(stat.st_size).ok()?;
    let code = size.checked_sub(TRAILER_LENGTH as u64)?;
    let mut found = [0; TRAILER_LENGTH];
    file.read_exact_at(&mut found, code).ok()?;
    if found.as_slice() != trailer(key, &checksum(&file, code)?, code) {
        return None;
    }
    // Checks the format of the file. The key ensures that the engine can use it.
    let form = Engine::detect_precompiled_file(descriptor::path_of(file.as_fd())).ok()?;
    if form != Some(wasmtime::Precompiled::Component) {
        return None;
    }
    renew(&file);
    Some(file)
}

/// Maps the code of an entry.
///
/// This is the only `unsafe` code of the host. `Component::deserialize_file` runs the file's bytes
/// as native code. It requires that they were written by `Component::serialize` of a compatible
/// engine and never change while they are mapped. The callers guarantee this. The descriptor is of
/// a regular file that only this user can write and that belongs to it, reached through directories
/// that only this user and root can change. Only this program writes there: complete files, which
/// are renamed into place and never opened for writing again. The key in the trailer names the
/// component and the engine that the code was made for (the engine also compares its own header).
/// Deleting an entry does not change the mapped inode. Code that could not be stored is in a sealed
/// file in memory.
#[expect(unsafe_code, reason = "the contract is above")]
fn map(engine: &Engine, file: &File) -> Result<Component> {
    // SAFETY: see the contract above.
    unsafe { Component::deserialize_file(engine, descriptor::path_of(file.as_fd())) }
}

fn trailer(key: &str, checksum: &blake3::Hash, code: u64) -> Vec<u8> {
    [key.as_bytes(), checksum.as_bytes(), &code.to_le_bytes(), &MARK].concat()
}

/// Returns the checksum of the first `length` bytes. Damage has to be noticed before the sandbox
/// closes, because nothing can be compiled again inside it.
fn checksum(file: &File, length: u64) -> Option<blake3::Hash> {
    use std::io::{Read as _, Seek as _};
    let mut file = file;
    file.rewind().ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(length)).ok()?;
    (hasher.count() == length).then(|| hasher.finalize())
}

/// Writes an entry to the directory.
fn keep(directory: &OwnedFd, key: &str, code: &[u8]) -> std::io::Result<()> {
    put(directory, key, &[code, &trailer(key, &blake3::hash(code), code.len() as u64)])
}

#[cfg(test)]
mod tests;
