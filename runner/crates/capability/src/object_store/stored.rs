//! What is stored under a name that an upload found taken.
//!
//! It is usually what the upload would have written: sizes and ETags agree. If that is not certain,
//! the object is read as a whole, hashed and decompressed. So what is published about an object is
//! always true for the stored bytes, whoever wrote them.

use std::io::{self, Read, Write};

use ::object_store::path::Path;
use ::object_store::{Error, ObjectMeta, ObjectStoreExt as _};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use md5::{Digest as _, Md5};
use tokio::sync::mpsc;

use super::error::explain;
use super::open::Open;
use super::put_nar::{nar_error, part_size};
use super::requests::contents;
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{self, Compression, Written};

/// Pieces of an object between the network and the decompressor.
const WAITING: usize = 4;

/// What an upload has sent, or would have sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub written: Written,
    /// The ETag that S3 gives such an object, without quotes.
    pub e_tag: String,
}

/// Returns what is stored under `path`, which must be the NAR in this compression. `sent`: what an
/// upload has sent, if one was tried.
///
/// # Errors
/// `permanent` if it is another NAR or damaged, `transient` if the object is gone, or as the store
/// has it.
pub(super) async fn describe(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: Nar,
    sent: Option<Sent>,
) -> Result<Written, CapabilityError> {
    let explained = |error: &Error| explain(open, "look for", path.as_ref(), error);
    let found = match open.store.head(path).await {
        Ok(found) => Some(found),
        Err(Error::NotFound { .. }) => return Err(gone(open, path)),
        // A role that may write and not read.
        Err(error) => return Err(explained(&error)),
    };
    let sent = match sent {
        // Files have no such ETags, and are read as fast as the store path.
        None if open.directory.is_none() => Some(encode(compression, nar.clone()).await?),
        sent => sent,
    };
    match (sent, found) {
        (Some(sent), Some(found)) if sent.is(&found) => Ok(sent.written),
        _ => read_back(open, path, compression, &nar).await,
    }
}

impl Sent {
    /// Returns whether the object has these bytes for certain.
    fn is(&self, found: &ObjectMeta) -> bool {
        let e_tag = found.e_tag.as_deref().map(|e_tag| e_tag.trim_matches('"'));
        found.size == self.written.file_size && e_tag == Some(self.e_tag.as_str())
    }
}

fn gone(open: &Open, path: &Path) -> CapabilityError {
    CapabilityError::transient(format!(
        "object store `{}` ({}): `{path}` was there and is gone; it is worth another try",
        open.name, open.place
    ))
}

/// Encodes the NAR without sending it.
pub(super) async fn encode(compression: Compression, nar: Nar) -> Result<Sent, CapabilityError> {
    let encoding = tokio::task::spawn_blocking(move || {
        let mut e_tag = PartsHash::new(part_size(nar.expected.nar_size));
        let written = nar::write(&nar.source, &nar.expected, compression, &mut e_tag)?;
        Ok(Sent { written, e_tag: e_tag.finish() })
    });
    encoding.await.map_err(|error| cut_off(&error))?.map_err(|error| nar_error(&error))
}

/// Reads the object, and checks that it is the NAR.
async fn read_back(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: &Nar,
) -> Result<Written, CapabilityError> {
    let failed = |error: &Error| explain(open, "get", path.as_ref(), error);
    let object = match contents(open, path).await {
        Ok(object) => object,
        Err(Error::NotFound { .. }) => return Err(gone(open, path)),
        Err(error) => return Err(failed(&error)),
    };
    let expected = nar.expected.clone();
    let (sender, pieces) = mpsc::channel::<Bytes>(WAITING);
    let most = expected.nar_size;
    let decoding = tokio::task::spawn_blocking(move || {
        nar::decode(compression, Pieces { pieces, now: Bytes::new() }, most)
    });
    let mut stream = object.into_stream();
    let mut broken = None;
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                if sender.send(piece).await.is_err() {
                    // The decoder has ended early: its error counts.
                    break;
                }
            }
            Err(error) => {
                broken = Some(failed(&error));
                break;
            }
        }
    }
    drop(sender);
    let decoded = decoding.await.map_err(|error| cut_off(&error))?;
    if let Some(error) = broken {
        return Err(error);
    }
    let what = match decoded {
        Ok(found) if found.nar_hash == expected.nar_hash => return Ok(found.stored),
        Ok(found) => format!("it has the NAR hash {}, not {}", found.nar_hash, expected.nar_hash),
        Err(error) => error.to_string(),
    };
    Err(CapabilityError::permanent(format!(
        "object store `{}` ({}): the stored object `{path}` is not the NAR of {} ({what}); it was not replaced; remove it, and the next upload writes it again",
        open.name, open.place, expected.path
    )))
}

fn cut_off(error: &tokio::task::JoinError) -> CapabilityError {
    CapabilityError::transient(format!("reading the store path was cut off ({error})"))
}

/// Reads what arrives.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.now.len());
        let (into, _) = buffer.split_at_mut(length);
        self.now.copy_to_slice(into);
        Ok(length)
    }
}

/// Computes the ETag of an object that is sent in parts of this size.
pub(super) struct PartsHash {
    size: usize,
    part: Md5,
    in_part: usize,
    parts: Vec<[u8; 16]>,
}

impl PartsHash {
    pub(super) fn new(size: usize) -> Self {
        Self { size, part: Md5::new(), in_part: 0, parts: Vec::new() }
    }

    fn end_part(&mut self) {
        self.in_part = 0;
        self.parts.push(self.part.finalize_reset().into());
    }

    pub(super) fn finish(mut self) -> String {
        if self.in_part > 0 || self.parts.is_empty() {
            self.end_part();
        }
        match self.parts.as_slice() {
            [one] => hex(one),
            parts => e_tag_of_parts(parts.iter().copied()),
        }
    }
}

impl Write for PartsHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.size.saturating_sub(self.in_part);
        let (now, _) = bytes.split_at(bytes.len().min(room));
        self.part.update(now);
        self.in_part += now.len();
        if self.in_part >= self.size {
            self.end_part();
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The ETag that S3 gives an object with this contents.
pub(super) fn e_tag(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes).into())
}

/// The ETag that S3 gives an object of several parts: the hash of their hashes, and their number.
fn e_tag_of_parts(parts: impl Iterator<Item = [u8; 16]>) -> String {
    let mut all = Md5::new();
    let mut count = 0;
    for part in parts {
        all.update(part);
        count += 1;
    }
    format!("{}-{count}", hex(&all.finalize().into()))
}

/// As [`e_tag_of_parts`], from the ETags of the parts. Empty if one of them is not a hash.
pub(super) fn e_tag_of_part_tags<'a>(tags: impl Iterator<Item = &'a str>) -> String {
    let hashes: Option<Vec<[u8; 16]>> = tags.map(|tag| unhex(tag.trim_matches('"'))).collect();
    hashes.map_or_else(String::new, |hashes| e_tag_of_parts(hashes.into_iter()))
}

fn hex(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let all_digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(u128::from_str_radix(text, 16).ok().filter(|_| all_digits)?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e_tags_are_those_of_s3() {
        assert_eq!(e_tag(b""), "d41d8cd98f00b204e9800998ecf8427e");
        let mut hash = PartsHash::new(3);
        hash.write_all(b"abcdefg").unwrap();
        let tags = [e_tag(b"abc"), format!("\"{}\"", e_tag(b"def")), e_tag(b"g")];
        let of_tags = e_tag_of_part_tags(tags.iter().map(String::as_str));
        assert_eq!(hash.finish(), of_tags);
        assert!(of_tags.ends_with("-3"), "{of_tags}");
        let mut one = PartsHash::new(3);
        one.write_all(b"abc").unwrap();
        assert_eq!(one.finish(), e_tag(b"abc"));
        assert_eq!(e_tag_of_part_tags(["other"].into_iter()), "");
    }
}
