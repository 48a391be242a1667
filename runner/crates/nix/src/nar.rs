//! A store path as a NAR, written in one pass: read, hashed, compared with Nix's database,
//! compressed, hashed again and passed to a writer. Called from a blocking thread by
//! `hookrun_capability::object_store`.
//!
//! Memory does not depend on the size of the path. The hash is known only after the last byte, so a
//! caller must not publish the data before [`write()`] returns without an error.

mod decode;
mod encode;
mod frames;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::NixHash;
use sha2::{Digest as _, Sha256};

pub use self::decode::{Decoded, decode};
pub use self::encode::EncodeError;

/// The default level of zstd.
const ZSTD_LEVEL: i32 = 3;
/// The default level of xz and of Nix.
const XZ_LEVEL: u32 = 6;
/// The supported zstd levels. From 20 on, readers need more memory than they may have (`--ultra`).
pub const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
/// The supported xz levels.
pub const XZ_LEVELS: std::ops::RangeInclusive<i32> = 0..=9;
/// The number of bytes that are collected before the next stage is called. The encoder writes words
/// of 8 bytes.
const BUFFER: usize = 128 << 10;
/// The version of the encoder of zstd, which is part of the name of its objects, with the version
/// of the library. It must be raised when the same NAR at the same level would result in different
/// bytes with the same library, for example because frames have another size.
const ZSTD_ENCODER: u32 = 2;
/// The same for xz, whose library is compiled in. It must be raised, too, when a new version of
/// that library results in different bytes (a test detects that).
const XZ_ENCODER: u32 = 1;

const MIB: u64 = 1 << 20;

/// A compression: a format with a valid level of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// zstd at a level of [`ZSTD_LEVELS`].
    Zstd(i32),
    /// xz at a level of [`XZ_LEVELS`].
    Xz(u32),
}

impl Compression {
    /// Returns the format called `format` as in a narinfo, at `level` or its default.
    ///
    /// # Errors
    /// A message that lists the known values.
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

    /// Returns the name of the object for a NAR with this hash. It contains the hash of the
    /// contents, which is known before the first byte is sent, and everything that determines the
    /// stored bytes: format, level, version of the encoder and, for zstd, of the library. So the
    /// same name always means the same bytes.
    pub fn object_name(self, nar_hash: &str) -> String {
        let hash = nar_hash.strip_prefix("sha256:").unwrap_or(nar_hash);
        match self {
            Self::None => format!("{hash}.nar"),
            Self::Zstd(level) => {
                let library = zstd::zstd_safe::version_number();
                format!("{hash}-z{level}.{ZSTD_ENCODER}.{library}.nar.zst")
            }
            Self::Xz(level) => format!("{hash}-x{level}.{XZ_ENCODER}.nar.xz"),
        }
    }

    /// Returns the approximate maximum memory for compressing `size` bytes.
    pub fn memory(self, size: u64) -> u64 {
        let most = match self {
            Self::None => 0,
            Self::Zstd(level) => frames::memory(level, size),
            // The table in xz(1).
            Self::Xz(level) => {
                let by_level = [3, 9, 17, 32, 48, 94, 94, 186, 370, 674];
                let index = usize::try_from(level).unwrap_or(usize::MAX);
                by_level.get(index).copied().unwrap_or(674) * MIB
            }
        };
        // A small NAR does not touch all memory of the tables.
        most.min((MIB / 2).saturating_add(size.saturating_mul(12)))
    }
}

/// The source of a serialisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A store path in the file system.
    Path(PathBuf),
    /// The bytes of a NAR (`hookrun test`).
    Bytes(Arc<[u8]>),
}

/// The values in Nix's database that the serialisation must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The full store path.
    pub path: String,
    /// The hash: `sha256:` and Nix's base32.
    pub nar_hash: String,
    /// The size in bytes.
    pub nar_size: u64,
}

/// The written data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The hash of the written bytes: `sha256:` and Nix's base32.
    pub file_hash: String,
    /// The number of written bytes.
    pub file_size: u64,
}

/// The reason why a NAR was not written completely.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The path differs from Nix's database.
    #[error(
        "store path {path} is corrupt: {reason}; run `nix-store --verify-path {path}`, and `nix-store --repair-path {path}` as root"
    )]
    Corrupt {
        /// The store path.
        path: String,
        /// The difference.
        reason: String,
    },
    /// The path does not exist any longer.
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
        /// The error of the encoder.
        #[source]
        error: EncodeError,
    },
    /// The reader of the stream has closed it, or a compressor failed.
    #[error("the NAR of {path} could not be passed on ({error})")]
    Write {
        /// The store path.
        path: String,
        /// The error of the writer.
        #[source]
        error: io::Error,
    },
}

/// Writes the compressed NAR of `source` to `out`, and compares it with `expected`. If it returns
/// without an error, `out` has received all data, and has been flushed. After an error it has
/// received a part.
///
/// # Errors
/// The path does not exist, cannot be read or differs from `expected`, or `out` fails.
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
            let encoder = frames::Frames::new(file, level, expected.nar_size);
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

/// Returns hash and size of a NAR's bytes, for sample stores.
pub fn hash(bytes: &[u8]) -> (String, u64) {
    (nix_hash(Sha256::digest(bytes).into()), bytes.len() as u64)
}

/// Writes the whole NAR to `next`, and returns it only if the NAR was as `expected`.
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
                    "its NAR has more than the {} bytes in Nix's database",
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

/// Hashes and counts the written bytes, up to a limit.
struct Counting<W> {
    next: W,
    hash: Sha256,
    size: u64,
    limit: u64,
    /// Whether more bytes than the limit were written.
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
            format!("its NAR has {size} bytes, but {} in Nix's database", expected.nar_size)
        } else if hash != expected.nar_hash {
            format!("its NAR hash is {hash}, but {} in Nix's database", expected.nar_hash)
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
        // The stages below are flushed when they are finished. Flushing a compressor earlier would
        // end a block.
        Ok(())
    }
}

fn nix_hash(digest: [u8; 32]) -> String {
    NixHash::Sha256(digest).to_nix_nixbase32_string()
}

#[cfg(test)]
mod tests;
