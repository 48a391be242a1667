//! Checks the bytes of a NAR: the hash of the stored object, and the hash of the NAR in it.
//!
//! The object is read once, in pieces. The NAR is hashed and not unpacked, so its depth does not
//! matter. Memory is a few pieces and the tables of the decompressor, which are bounded; a NAR that
//! becomes longer than its narinfo says is given up.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hookrun_capability::object_store::Streamed;
use hookrun_nix::nar::{self, Compression};
use hookrun_nix::narinfo::Narinfo;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::CacheError;

/// The number of pieces between the store and the decompressor.
const WAITING: usize = 4;
/// The result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Everything is as the narinfo says.
    Right,
    /// The stored bytes are right as far as the narinfo says, but this compression is not known.
    Unchecked(String),
    /// The stored bytes differ from `FileHash` or `FileSize`.
    WrongFile(String),
    /// The NAR in the object differs from `NarHash` or `NarSize`, or cannot be decompressed.
    WrongNar(String),
}

/// Reads an object and checks it.
///
/// # Errors
/// The store breaks off. This is not the object's fault.
pub async fn check(narinfo: &Narinfo, object: Streamed) -> Result<Content, CacheError> {
    let Streamed { size, mut pieces } = object;
    if let Some(expected) = narinfo.file_size().filter(|expected| *expected != size) {
        return Ok(Content::WrongFile(format!("it has {size} bytes, and FileSize is {expected}")));
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(WAITING);
    let compression = Compression::parse(narinfo.compression(), None).ok();
    let most = narinfo.nar_size();
    let decoding = tokio::task::spawn_blocking(move || {
        let reader = Pieces { receiver, piece: Bytes::new() };
        compression.map(|compression| nar::decode(compression, reader, most))
    });
    let mut file = Sha256::new();
    let mut read = 0_u64;
    let mut sender = Some(sender);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        read = read.saturating_add(piece.len() as u64);
        if read > size {
            return Ok(Content::WrongFile(format!("it has more than the stated {size} bytes")));
        }
        file.update(&piece);
        // A decoder that has given up does not need the rest, but the hash of the file does.
        if let Some(open) = &sender
            && open.send(piece).await.is_err()
        {
            sender = None;
        }
    }
    drop(sender);
    let decoded = decoding
        .await
        .map_err(|error| CacheError::Environment(format!("a check was cut off ({error})")))?;
    if read < size {
        return Ok(Content::WrongFile(format!("it ends after {read} of {size} bytes")));
    }
    let hash = base32(&file.finalize());
    if let Some(expected) = narinfo.file_hash().filter(|expected| *expected != hash) {
        return Ok(Content::WrongFile(format!("its hash is {hash}, and FileHash is {expected}")));
    }
    Ok(match decoded {
        None => Content::Unchecked(narinfo.compression().to_owned()),
        Some(Err(error)) => Content::WrongNar(format!("it cannot be read: {error}")),
        Some(Ok(found)) if found.nar_size != most => Content::WrongNar(format!(
            "it contains {} bytes, and NarSize is {most}",
            found.nar_size
        )),
        Some(Ok(found)) if found.nar_hash != narinfo.nar_hash() => Content::WrongNar(format!(
            "the hash of its contents is {}, and NarHash is {}",
            found.nar_hash,
            narinfo.nar_hash()
        )),
        Some(Ok(_)) => Content::Right,
    })
}

/// Reads the pieces that come through a channel.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        let piece = self.piece.split_to(length);
        if let Some(buffer) = buffer.get_mut(..length) {
            buffer.copy_from_slice(&piece);
        }
        Ok(length)
    }
}

/// Returns a SHA-256 hash as in a narinfo.
pub(crate) fn base32(hash: &[u8]) -> String {
    nix_derivation::NixHash::from_algorithm_and_digest(nix_derivation::HashAlgorithm::Sha256, hash)
        .map(|hash| hash.to_nix_nixbase32_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// Returns the result for an object whose narinfo is that of `nar` in `file`.
    async fn checked(nar: &[u8], compression: &str, file: &[u8], stored: &[u8]) -> Content {
        let text = format!(
            "StorePath: /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a\nURL: nar/a\n\
             Compression: {compression}\nFileHash: {}\nNarHash: {}\nNarSize: {}\n",
            base32(&Sha256::digest(file)),
            base32(&Sha256::digest(nar)),
            nar.len()
        );
        let narinfo = Narinfo::parse("/nix/store", text.as_bytes()).unwrap();
        let pieces: Vec<_> =
            stored.chunks(10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let object = Streamed { size: stored.len() as u64, pieces: stream::iter(pieces).boxed() };
        check(&narinfo, object).await.unwrap()
    }

    #[tokio::test]
    async fn every_compression_is_checked_to_the_last_byte() {
        let nar: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let zstd = zstd::encode_all(&*nar, 3).unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&*nar, 1).read_to_end(&mut xz).unwrap();
        for (compression, file) in [("none", &nar), ("zstd", &zstd), ("xz", &xz)] {
            assert_eq!(checked(&nar, compression, file, file).await, Content::Right);
            let mut flipped = file.clone();
            *flipped.last_mut().unwrap() ^= 1;
            let found = checked(&nar, compression, file, &flipped).await;
            assert!(matches!(found, Content::WrongFile(_)), "{compression}: {found:?}");
            let cut = &file[..file.len() - 1];
            let found = checked(&nar, compression, cut, cut).await;
            assert!(matches!(found, Content::WrongNar(_)), "{compression}: {found:?}");
        }
        let twice = [zstd.clone(), zstd].concat();
        let found = checked(&nar, "zstd", &twice, &twice).await;
        let reason = "it cannot be read: the NAR has more than 400000 bytes";
        assert_eq!(found, Content::WrongNar(reason.into()));
        assert_eq!(checked(&nar, "br", &nar, &nar).await, Content::Unchecked("br".into()));
    }

    #[tokio::test]
    async fn a_small_object_that_becomes_huge_is_given_up() {
        let bomb = zstd::encode_all(io::repeat(0).take(1 << 30), 3).unwrap();
        let found = checked(&[0; 100], "zstd", &bomb, &bomb).await;
        assert!(matches!(found, Content::WrongNar(_)), "{found:?}");
    }
}
