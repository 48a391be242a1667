//! Plugins compiled ahead of time, so that a start maps a file instead of running a compiler (0.1
//! ms instead of 50 ms for a small Rust plugin, seconds for an interpreter).
//!
//! An entry is native code: a user who can write it can do what this process can. The directory
//! therefore belongs to the user that runs guests, with mode 0700; no component of its path is a
//! symlink or can be changed by users other than that one and root; and entries are opened relative
//! to its descriptor, without following links, and checked on the descriptor that is mapped. An
//! entry appears by rename after fsync and is never changed in place. It is found by a key of
//! everything that makes it fit: the digest of the component, and the engine's compatibility hash,
//! which covers wasmtime's full version, its settings and the target with its CPU features. The key
//! is in the entry too, with a checksum of the code. An entry that does not match is a miss and
//! never an error; a directory that cannot be trusted only costs time.
//!
//! Use renews the age of an entry. Only [`Cache::prune`] removes entries; it knows those
//! of the configured plugins and leaves them alone whatever their age.

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

/// The end of an entry: the key, the checksum and the length of the code before it, and this mark.
const MARK: [u8; 16] = *b"hookrun-entry-03";
/// A key is a SHA-256 in hexadecimal.
pub(super) const KEY_LENGTH: usize = 64;
/// BLAKE3: an interpreter's 35 MiB are read in ten milliseconds.
const CHECKSUM_LENGTH: usize = blake3::OUT_LEN;
/// Key, checksum, length and mark.
const TRAILER_LENGTH: usize = KEY_LENGTH + CHECKSUM_LENGTH + 8 + MARK.len();

/// How often a lock that another process holds is tried.
const LOCK_TICK: Duration = Duration::from_millis(10);

/// How a component was made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Found in the cache.
    Mapped,
    /// Compiled and put into the cache.
    Compiled,
    /// Compiled, and not kept: why.
    NotKept(String),
}

/// Native code that was found or made, open, and not mapped yet.
#[derive(Debug)]
pub struct Code {
    file: File,
    /// Where it came from.
    pub origin: Origin,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The cache in `directory`, which need not exist.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The native code of the component with this [`digest`]: from the cache, or from `compile` and
    /// kept. Maps nothing. Of several processes that need the same, one compiles; the others wait
    /// for it, at most for `patience`.
    ///
    /// # Errors
    /// What `compile` says, or that there is no memory to hold its result.
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
            find(directory, &key)
                .ok_or_else(|| failed(&"what was written there is not what is there"))
        });
        match kept {
            Ok(file) => Ok(Code { file, origin: Origin::Compiled }),
            Err(reason) => Ok(Code { file: in_memory(&code)?, origin: Origin::NotKept(reason) }),
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes entries that are not among `configured`, as far as `leftovers` does not keep them.
    pub fn prune(&self, configured: &BTreeSet<String>, leftovers: Leftovers) {
        prune(&self.directory, configured, leftovers);
    }
}

/// The right to compile for an entry, held until it is dropped.
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
        // A process that waits has it open and finds the entry.
        let _gone = rustix::fs::unlinkat(self.directory, &*self.name, AtFlags::empty());
    }
}

impl Code {
    /// Maps the code into `engine`, for which it was made.
    ///
    /// # Errors
    /// The engine refuses it.
    pub fn map(&self, engine: &Engine) -> Result<Component> {
        map(engine, &self.file)
    }
}

/// Returns code that could not be kept as a file without a name, which cannot be changed.
fn in_memory(code: &[u8]) -> std::io::Result<File> {
    hookrun_system::memory::sealed("hookrun-code", code)
}

/// The SHA-256 of a component, in hexadecimal.
pub fn digest(wasm: &[u8]) -> String {
    format!("{:x}", Sha256::digest(wasm))
}

/// The name of the entry for the component with this [`digest`] in this engine.
pub(super) fn key(engine: &Engine, digest: &str) -> String {
    /// Feeds a digest from `Hash`, so that the key does not rest on 64 bits.
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
    // Covers the full version of wasmtime: `ModuleVersionStrategy::WasmtimeVersion`,
    // crates/wasmtime/src/config.rs in 48.0.
    engine.precompile_compatibility_hash().hash(&mut sha);
    sha.0.update(std::env::consts::ARCH);
    sha.0.update(std::env::consts::OS);
    format!("{:x}", sha.0.finalize())
}

/// The entry `key`, if it is there and fits.
fn find(directory: &OwnedFd, key: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(directory, key, flags, Mode::empty()).ok()?);
    let stat = trusted(&file)?;
    if Mode::from_raw_mode(stat.st_mode) != ENTRY_MODE {
        // Written with another umask: the runner's user could not map it.
        rustix::fs::fchmod(&file, ENTRY_MODE).ok()?;
    }
    let size = u64::try_from(stat.st_size).ok()?;
    let code = size.checked_sub(TRAILER_LENGTH as u64)?;
    let mut found = [0; TRAILER_LENGTH];
    file.read_exact_at(&mut found, code).ok()?;
    if found.as_slice() != trailer(key, &checksum(&file, code)?, code) {
        return None;
    }
    // The form of the file; whether the engine can use it, the key says.
    let form = Engine::detect_precompiled_file(descriptor::path_of(file.as_fd())).ok()?;
    if form != Some(wasmtime::Precompiled::Component) {
        return None;
    }
    renew(&file);
    Some(file)
}

/// Maps the code of an entry.
///
/// This is the one `unsafe` of the sandbox. `Component::deserialize_file` runs the file's bytes as
/// native code, and needs that they came from `Component::serialize` of a compatible engine and
/// never change while mapped. The callers above guarantee it: the descriptor is of a regular file
/// that belongs to us and that only we can write, reached through directories that only we and root
/// can change; this program alone writes there, complete files that appear by rename and are never
/// opened for writing again; and the key in the trailer says which component and which engine it
/// was made for (the engine compares its own header too). Deleting an entry leaves the mapped inode
/// as it is. Code that could not be kept is in a sealed file in memory.
#[expect(unsafe_code, reason = "the contract is above")]
fn map(engine: &Engine, file: &File) -> Result<Component> {
    // SAFETY: see the contract above.
    unsafe { Component::deserialize_file(engine, descriptor::path_of(file.as_fd())) }
}

fn trailer(key: &str, checksum: &blake3::Hash, code: u64) -> Vec<u8> {
    [key.as_bytes(), checksum.as_bytes(), &code.to_le_bytes(), &MARK].concat()
}

/// Of the first `length` bytes: behind the wall nothing is compiled again, so damage has to be seen
/// before.
fn checksum(file: &File, length: u64) -> Option<blake3::Hash> {
    use std::io::{Read as _, Seek as _};
    let mut file = file;
    file.rewind().ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(length)).ok()?;
    (hasher.count() == length).then(|| hasher.finalize())
}

/// Puts an entry into the directory.
fn keep(directory: &OwnedFd, key: &str, code: &[u8]) -> std::io::Result<()> {
    put(directory, key, &[code, &trailer(key, &blake3::hash(code), code.len() as u64)])
}

#[cfg(test)]
mod tests;
