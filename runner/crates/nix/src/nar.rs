//! A store path as a NAR, written in one pass: read, hashed, compared with Nix's database,
//! compressed, hashed again and handed to a writer. Called from a blocking thread by
//! `hookrun_capability::object_store`.
//!
//! Memory does not depend on the path's size. Nothing is trusted to be what the database says until
//! the last byte: a caller must not publish what it was given before [`write()`] returns without an
//! error.

mod encode;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::NixHash;
use sha2::{Digest as _, Sha256};

pub use self::encode::EncodeError;

/// NARs from this size on are compressed with zstd on several threads; below, starting threads
/// costs more than it gives.
const PARALLEL_FROM: u64 = 32 << 20;
/// The most zstd threads for one NAR. Each holds a job of some MiB, and others upload beside us.
const MAX_THREADS: usize = 4;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// xz's own default, and Nix's.
const XZ_LEVEL: u32 = 6;
/// zstd levels on offer. From 20 on the reader needs more memory than it may have (`--ultra`).
pub const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
/// xz levels on offer.
pub const XZ_LEVELS: std::ops::RangeInclusive<i32> = 0..=9;
/// What is gathered before the next stage is called. The encoder writes 8-byte words.
const BUFFER: usize = 128 << 10;
/// Stands in the name of every compressed object. Raised whenever the same NAR at the same level
/// would become other bytes (a test notices that), so that no object is ever replaced by different
/// bytes under the same name.
const ENCODER: u32 = 1;

const MIB: u64 = 1 << 20;

/// How a NAR is compressed: a format with a level that this format has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// zstd at a level of [`ZSTD_LEVELS`].
    Zstd(i32),
    /// xz at a level of [`XZ_LEVELS`].
    Xz(u32),
}

impl Compression {
    /// The format called `format` as in a narinfo, at `level` or its default.
    ///
    /// # Errors
    /// A fragment that says what is known.
    pub fn parse(format: &str, level: Option<i32>) -> Result<Self, String> {
        let within = |levels: std::ops::RangeInclusive<i32>| match level {
            Some(level) if !levels.contains(&level) => Err(format!(
                "{format} has no level {level}; write {} to {}",
                levels.start(),
                levels.end()
            )),
            level => Ok(level),
        };
        match format {
            "none" => Ok(Self::None),
            "zstd" => Ok(Self::Zstd(within(ZSTD_LEVELS)?.unwrap_or(ZSTD_LEVEL))),
            "xz" => Ok(Self::Xz(
                within(XZ_LEVELS)?.and_then(|level| u32::try_from(level).ok()).unwrap_or(XZ_LEVEL),
            )),
            _ => Err(format!("unknown compression `{format}`; write `zstd`, `xz` or `none`")),
        }
    }

    /// The name of the object that a NAR with this hash becomes: by the hash of what is inside,
    /// which is known before the first byte is sent, and by everything that decides which bytes
    /// the compressor makes of it.
    pub fn object_name(self, nar_hash: &str) -> String {
        let hash = nar_hash.strip_prefix("sha256:").unwrap_or(nar_hash);
        match self {
            Self::None => format!("{hash}.nar"),
            Self::Zstd(level) => format!("{hash}-z{level}.{ENCODER}.nar.zst"),
            Self::Xz(level) => format!("{hash}-x{level}.{ENCODER}.nar.xz"),
        }
    }

    /// About the most memory that compressing `size` bytes takes.
    pub fn memory(self, size: u64) -> u64 {
        // zstd: measured; each thread has tables and a job of its own. xz: the table of xz(1).
        let most = match self {
            Self::None => 0,
            Self::Zstd(level) => {
                let one = match level {
                    ..=4 => 12 * MIB,
                    5..=12 => 48 * MIB,
                    _ => 128 * MIB,
                };
                if size >= PARALLEL_FROM { one * u64::from(threads()) } else { one }
            }
            Self::Xz(level) => {
                let by_level = [3, 9, 17, 32, 48, 94, 94, 186, 370, 674];
                let index = usize::try_from(level).unwrap_or(usize::MAX);
                by_level.get(index).copied().unwrap_or(674) * MIB
            }
        };
        // Tables that a small NAR does not fill are never touched.
        most.min((4 * MIB).saturating_add(size.saturating_mul(12)))
    }
}

/// zstd's threads for one large NAR.
fn threads() -> u32 {
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(machine.min(MAX_THREADS)).unwrap_or(1)
}

/// Where the serialisation comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A store path in the file system.
    Path(PathBuf),
    /// The bytes of a NAR (`hookrun test`).
    Bytes(Arc<[u8]>),
}

/// What the database says that the serialisation must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Full store path.
    pub path: String,
    /// `sha256:` and Nix base32.
    pub nar_hash: String,
    /// Bytes.
    pub nar_size: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Of the bytes written, `sha256:` and Nix base32.
    pub file_hash: String,
    /// Bytes written.
    pub file_size: u64,
}

/// Why a NAR was not written whole.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The path is not what the database says.
    #[error(
        "store path {path} is corrupt: {reason}; run `nix-store --verify-path {path}`, and `nix-store --repair-path {path}` as root"
    )]
    Corrupt {
        /// The store path.
        path: String,
        /// What differs.
        reason: String,
    },
    /// The path is not there any more.
    #[error("store path {path} is gone; it was garbage-collected after its build")]
    Gone {
        /// The store path.
        path: String,
    },
    /// The path cannot be read.
    #[error("store path {path} cannot be read ({error})")]
    Read {
        /// The store path.
        path: String,
        /// What the encoder says.
        #[source]
        error: EncodeError,
    },
    /// The reader of the stream went away, or a compressor failed.
    #[error("the NAR of {path} could not be passed on ({error})")]
    Write {
        /// The store path.
        path: String,
        /// What the writer says.
        #[source]
        error: io::Error,
    },
}

/// Writes the NAR of `source` to `out`, compressed, and compares it with `expected`. `out` has had
/// everything, flushed, when this returns without an error; after an error it has had some part of
/// it.
///
/// # Errors
/// If the path is gone, unreadable, or not what `expected` says, or `out` fails.
pub fn write(
    source: &Source,
    expected: &Expected,
    compression: Compression,
    out: impl Write,
) -> Result<Written, NarError> {
    let failed = |error: io::Error| NarError::Write { path: expected.path.clone(), error };
    let file = io::BufWriter::with_capacity(BUFFER, Counting::new(out, u64::MAX));
    let file = match compression {
        Compression::None => feed(source, expected, file)?,
        Compression::Zstd(level) => {
            let encoder = zstd_encoder(file, level, expected.nar_size).map_err(failed)?;
            feed(source, expected, encoder)?.finish().map_err(failed)?
        }
        Compression::Xz(level) => {
            let encoder = liblzma::write::XzEncoder::new(file, level);
            feed(source, expected, encoder)?.finish().map_err(failed)?
        }
    };
    let mut counting = file.into_inner().map_err(|error| failed(error.into_error()))?;
    counting.flush().map_err(failed)?;
    let (hash, size) = counting.finish();
    Ok(Written { file_hash: hash, file_size: size })
}

/// The hash and the size of a NAR's bytes, for made-up stores.
pub fn hash(bytes: &[u8]) -> (String, u64) {
    (nix_hash(Sha256::digest(bytes).into()), bytes.len() as u64)
}

fn zstd_encoder<W: Write>(out: W, level: i32, size: u64) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, level)?;
    // Lets zstd fit its tables to small NARs, and readers their buffers.
    encoder.set_pledged_src_size(Some(size))?;
    encoder.include_contentsize(true)?;
    encoder.include_checksum(true)?;
    // With one thread too: the bytes must not depend on the machine's number of processors.
    if size >= PARALLEL_FROM {
        encoder.multithread(threads())?;
    }
    Ok(encoder)
}

/// Sends the whole NAR into `next`, and gives it back only if it was what `expected` says.
fn feed<W: Write>(source: &Source, expected: &Expected, next: W) -> Result<W, NarError> {
    let path = || expected.path.clone();
    let mut nar = io::BufWriter::with_capacity(BUFFER, Counting::new(next, expected.nar_size));
    let result = match source {
        Source::Path(path) => encode::encode(&mut nar, path),
        Source::Bytes(bytes) => nar.write_all(bytes).map_err(EncodeError::Write),
    };
    let result = result.and_then(|()| nar.flush().map_err(EncodeError::Write));
    let (counting, _) = nar.into_parts();
    if let Err(error) = result {
        return Err(match error {
            EncodeError::Write(_) if counting.too_long => NarError::Corrupt {
                path: path(),
                reason: format!(
                    "its NAR has more than the {} bytes that Nix's database says",
                    expected.nar_size
                ),
            },
            EncodeError::Write(error) => NarError::Write { path: path(), error },
            EncodeError::Read { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                NarError::Gone { path: path() }
            }
            error => NarError::Read { path: path(), error },
        });
    }
    let next = counting.check(expected)?;
    Ok(next)
}

/// Hashes and counts what goes through, up to a limit.
struct Counting<W> {
    next: W,
    hash: Sha256,
    size: u64,
    limit: u64,
    /// Whether more was written than the limit.
    too_long: bool,
}

impl<W: Write> Counting<W> {
    fn new(next: W, limit: u64) -> Self {
        Self { next, hash: Sha256::new(), size: 0, limit, too_long: false }
    }

    fn finish(self) -> (String, u64) {
        (nix_hash(self.hash.finalize().into()), self.size)
    }

    fn check(self, expected: &Expected) -> Result<W, NarError> {
        let Self { next, hash, size, .. } = self;
        let hash = nix_hash(hash.finalize().into());
        let reason = if size != expected.nar_size {
            format!("its NAR has {size} bytes, and Nix's database says {}", expected.nar_size)
        } else if hash != expected.nar_hash {
            format!("its NAR hash is {hash}, and Nix's database says {}", expected.nar_hash)
        } else {
            return Ok(next);
        };
        Err(NarError::Corrupt { path: expected.path.clone(), reason })
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size.saturating_add(bytes.len() as u64) > self.limit {
            self.too_long = true;
            return Err(io::Error::other("longer than expected"));
        }
        let written = self.next.write(bytes)?;
        let (done, _) = bytes.split_at(written.min(bytes.len()));
        self.hash.update(done);
        self.size += done.len() as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The stages below are flushed by being finished: flushing a compressor in between would
        // end a block.
        Ok(())
    }
}

fn nix_hash(digest: [u8; 32]) -> String {
    NixHash::Sha256(digest).to_nix_nixbase32_string()
}

#[cfg(test)]
mod tests;
