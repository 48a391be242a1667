//! Reads a stored NAR back: hashes the stored bytes and the NAR in them, in one pass with constant
//! memory.

use std::io::{self, Read};

use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest as _, Sha256};

use super::{Compression, Written, nix_hash};

/// The memory limit of the xz decoder. Level 9 needs 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;
/// The largest window of a zstd frame, as a power of two: 128 MiB, the limit of other readers.
const ZSTD_WINDOW: u32 = 27;
const CHUNK: usize = 64 << 10;

/// A stored NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The hash and the size of the stored bytes.
    pub stored: Written,
    /// The hash of the NAR: `sha256:` and Nix's base32.
    pub nar_hash: String,
    /// The size of the NAR in bytes.
    pub nar_size: u64,
}

/// Reads the stored bytes of a NAR to the end. The level of `compression` is not used. If the NAR
/// has more than `max_size` bytes, it is not read further.
///
/// # Errors
/// `stored` cannot be read, is not in the format of `compression`, has data after its end, or
/// contains more than `max_size` bytes (`InvalidData`).
pub fn decode(compression: Compression, stored: impl Read, max_size: u64) -> io::Result<Decoded> {
    let mut stored = Hashing { inner: stored, hash: Sha256::new(), size: 0 };
    let (nar_hash, nar_size) = match compression {
        Compression::None => hash(&mut stored, max_size)?,
        Compression::Zstd(_) => {
            // Reads all frames, and fails if something else follows.
            let mut decoder = zstd::Decoder::new(&mut stored)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            hash(decoder, max_size)?
        }
        Compression::Xz(_) => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
            hash(liblzma::read::XzDecoder::new_stream(&mut stored, stream), max_size)?
        }
    };
    // What follows the end of the compressed data belongs to the object, but not to the format.
    let mut byte = [0];
    if stored.read(&mut byte)? > 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there is data after the end"));
    }
    let stored =
        Written { file_hash: nix_hash(stored.hash.finalize().into()), file_size: stored.size };
    Ok(Decoded { stored, nar_hash, nar_size })
}

fn hash(mut nar: impl Read, max_size: u64) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match nar.read(&mut buffer) {
            Ok(0) => return Ok((nix_hash(hash.finalize().into()), size)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size = size.saturating_add(read as u64);
        if size > max_size {
            let message = format!("the NAR has more than {max_size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        self.size += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Expected, Source, hash, write};
    use super::*;

    fn stored(compression: Compression, nar: &[u8]) -> (Vec<u8>, Written) {
        let (nar_hash, nar_size) = hash(nar);
        let expected = Expected { path: "/s/a".to_owned(), nar_hash, nar_size };
        let mut out = Vec::new();
        let source = Source::Bytes(Arc::from(nar));
        let written = write(&source, &expected, compression, &mut out).unwrap();
        (out, written)
    }

    const ALL: [Compression; 3] = [Compression::None, Compression::Zstd(1), Compression::Xz(0)];

    #[test]
    fn a_stored_nar_is_hashed_inside_and_outside() {
        let nar = b"the same line\n".repeat(900_000);
        for compression in ALL {
            let (bytes, written) = stored(compression, &nar);
            let decoded = decode(compression, bytes.as_slice(), nar.len() as u64).unwrap();
            assert_eq!((decoded.nar_hash, decoded.nar_size), hash(&nar));
            assert_eq!(decoded.stored, written);
        }
    }

    #[test]
    fn damaged_objects_are_errors() {
        let nar = b"the same line\n".repeat(900_000);
        for compression in ALL {
            let (bytes, _) = stored(compression, &nar);
            let size = nar.len() as u64;
            let error = decode(compression, bytes.as_slice(), size - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{compression:?}");
            if compression == Compression::None {
                continue;
            }
            let (half, _) = bytes.split_at(bytes.len() / 2);
            decode(compression, half, size).unwrap_err();
            let longer = [bytes.as_slice(), b"more"].concat();
            decode(compression, longer.as_slice(), size).unwrap_err();
            decode(compression, nar.as_slice(), size).unwrap_err();
        }
    }
}
