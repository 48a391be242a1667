//! Uploads a store path as a NAR in one pass: a blocking thread reads, hashes and
//! compresses ([`hookrun_nix::nar::write`]), and fixed-size parts go through a short channel to the
//! service.
//!
//! Memory is a few parts, whatever the size. The object appears whole or not at all: a small one is
//! one `put` after the last check; a large one is a multipart upload, completed only when size and
//! hash of the NAR are what Nix's database says, and aborted otherwise. One that a killed process
//! has left is aborted by the next ([`super::half_done`]).

use std::io::{self, Write};
use std::sync::Arc;

use ::object_store::path::Path;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::attributes::ObjectAttributes;
use super::error::explain;
use super::half_done::HalfDone;
use super::http_put;
use super::once::{self, Condition, Creation, Name};
use super::open::Open;
use super::stored::{self, Sent};
use super::transfers::UnderWay;
use super::upload::{PARALLEL, Upload};
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{self, Compression, EncodeError, NarError, Written};

/// Size of a part, unless that would be too many parts: over the 5 MiB that S3 wants, and equal
/// for all but the last as R2 wants.
pub(super) const PART: usize = 8 << 20;
/// Parts of one upload: S3 takes 10,000, and compressed bytes may be a few more than the NAR's.
const MAX_PARTS: u64 = 9_900;
/// Parts between the compressor and the sender.
const WAITING: usize = 1;
/// Parts in memory at once: with the one that is filled.
const IN_MEMORY: u64 = (PARALLEL + WAITING + 1) as u64;
/// What compressors may add to bytes that do not compress.
const OVERHEAD: u64 = 64 << 10;
/// What a binary cache serves NARs as (Nix 2.34 `nix copy --to s3://`).
pub(super) const CONTENT_TYPE: &str = "application/x-nix-nar";

/// The size of the parts of a NAR of `nar_size` bytes.
pub(super) fn part_size(nar_size: u64) -> usize {
    let times = nar_size.div_ceil(PART as u64 * MAX_PARTS).max(1);
    usize::try_from(times).unwrap_or(usize::MAX).saturating_mul(PART)
}

/// About the most memory that putting a NAR of `nar_size` bytes takes.
pub(super) fn memory(compression: Compression, nar_size: u64) -> u64 {
    let parts = (part_size(nar_size) as u64).saturating_mul(IN_MEMORY);
    compression.memory(nar_size).saturating_add(parts.min(nar_size.saturating_add(OVERHEAD)))
}

/// Puts the NAR under `path`, unless there is an object. Returns what is stored, and whether this
/// call has written it.
///
/// # Errors
/// `permanent` if the store path is not what Nix's database says, or another object is stored under
/// this name; `not-found` if the path is gone; or as the store has it.
pub(super) async fn put_nar(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: Nar,
    attributes: &ObjectAttributes,
    half_done: &HalfDone,
    under_way: Arc<UnderWay>,
) -> Result<(Written, Creation), CapabilityError> {
    // With some services, parts are joined without a condition.
    let in_parts = nar.expected.nar_size > PART as u64;
    if in_parts || open.conditions.put() != Condition::Honoured {
        let found = once::is_there(open, path).await;
        if found.map_err(|error| explain(open, "look for", path.as_ref(), &error))? {
            let written = stored::describe(open, path, compression, nar, None).await?;
            return Ok((written, Creation::Exists));
        }
    }
    let again = nar.clone();
    let (sent, creation) = match &open.http {
        Some(http) if in_parts => {
            http_put::put(open, http, path, compression, nar, attributes, &under_way).await?
        }
        _ => send(open, path, compression, nar, attributes, half_done, under_way).await?,
    };
    let written = match creation {
        Creation::Created => sent.written,
        Creation::Exists => stored::describe(open, path, compression, again, Some(sent)).await?,
    };
    Ok((written, creation))
}

/// Reads, compresses and sends the NAR.
async fn send(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: Nar,
    attributes: &ObjectAttributes,
    half_done: &HalfDone,
    under_way: Arc<UnderWay>,
) -> Result<(Sent, Creation), CapabilityError> {
    let part = part_size(nar.expected.nar_size);
    let (sender, mut parts) = mpsc::channel(WAITING);
    let first_size = usize::try_from(nar.expected.nar_size.saturating_add(OVERHEAD))
        .map_or(part, |size| size.min(part));
    let writing = tokio::task::spawn_blocking(move || {
        let mut filler = Filler::new(sender, part, first_size);
        let written = nar::write(&nar.source, &nar.expected, compression, &mut filler)?;
        let failed = |error| NarError::Write { path: nar.expected.path.clone(), error };
        filler.send().map_err(failed)?;
        Ok(written)
    });
    let written = async {
        writing
            .await
            .map_err(|error| {
                CapabilityError::transient(format!("reading the store path was cut off ({error})"))
            })?
            .map_err(|error| nar_error(&error))
    };
    let first: Bytes = parts.recv().await.unwrap_or_default();
    let failed = |error: &::object_store::Error| explain(open, "put", path.as_ref(), error);
    let Some(second) = parts.recv().await else {
        let written = written.await?;
        let sent = Sent { written, e_tag: stored::e_tag(&first) };
        let created = once::create(open, path, first, attributes, Name::DeterminesBytes).await;
        return created.map(|creation| (sent, creation)).map_err(|error| failed(&error));
    };
    let upload = Upload::begin(open, path, attributes, half_done, under_way).await;
    let mut upload = upload.map_err(|error| failed(&error))?;
    let sent = async {
        upload.send(first).await?;
        upload.send(second).await?;
        while let Some(part) = parts.recv().await {
            upload.send(part).await?;
        }
        upload.settle(0).await
    }
    .await;
    // A reader that fails ends the stream as if it were whole: only its own word counts.
    drop(parts);
    let result = match (sent, written.await) {
        // What was wrong with the service also ends the reader.
        (Err(error), _) => Err(failed(&error)),
        (Ok(()), Err(error)) => Err(error),
        (Ok(()), Ok(written)) => Ok(written),
    };
    let written = match result {
        Ok(written) => written,
        Err(error) => {
            upload.abort().await;
            return Err(error);
        }
    };
    let sent = Sent { written, e_tag: upload.e_tag() };
    match upload.complete(open, path).await {
        Ok(Creation::Created) => Ok((sent, Creation::Created)),
        Ok(Creation::Exists) => {
            upload.abort().await;
            Ok((sent, Creation::Exists))
        }
        // The answer may have been lost on its way: then the upload is unknown now, and the object
        // is there. The caller compares it.
        Err(_) if once::is_there(open, path).await.is_ok_and(|is_there| is_there) => {
            upload.abort().await;
            Ok((sent, Creation::Exists))
        }
        Err(error) => {
            upload.abort().await;
            Err(failed(&error))
        }
    }
}

pub(super) fn nar_error(error: &NarError) -> CapabilityError {
    let message = error.to_string();
    match error {
        NarError::Corrupt { .. } => CapabilityError::permanent(message),
        NarError::Gone { .. } => CapabilityError::not_found(message),
        // Says nothing about the service.
        NarError::Read { error: EncodeError::Unsupported(_), .. } => {
            CapabilityError::permanent(message)
        }
        NarError::Read { error: EncodeError::Read { error, .. }, .. }
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            CapabilityError::refused(format!(
                "{message}; uid {}, which runs plugins, must be able to read the Nix store",
                rustix::process::geteuid().as_raw()
            ))
        }
        NarError::Read { .. } | NarError::Write { .. } => CapabilityError::transient(message),
    }
}

/// Gathers what is written into parts.
pub(super) struct Filler {
    sender: mpsc::Sender<Bytes>,
    size: usize,
    part: Vec<u8>,
}

impl Filler {
    /// Sends parts of this size. The first is expected to have `first` bytes.
    pub(super) fn new(sender: mpsc::Sender<Bytes>, size: usize, first: usize) -> Self {
        Self { sender, size, part: Vec::with_capacity(first) }
    }

    /// Sends what is gathered.
    pub(super) fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        self.sender
            .blocking_send(part.into())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload ended early"))
    }
}

impl Write for Filler {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (now, _) = bytes.split_at(bytes.len().min(self.size.saturating_sub(self.part.len())));
        self.part.extend_from_slice(now);
        if self.part.len() >= self.size {
            self.send()?;
            self.part = Vec::with_capacity(self.size);
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_with_the_nar() {
        assert_eq!(part_size(0), PART);
        assert_eq!(part_size(70 << 30), PART);
        for gigabytes in [80_u64, 100, 1000, 4000] {
            let size = gigabytes << 30;
            let part = part_size(size);
            assert!(part.is_multiple_of(PART), "all but the last are equal");
            assert!(size.div_ceil(part as u64) <= MAX_PARTS, "{gigabytes} GiB");
        }
    }

    #[test]
    fn memory_is_that_of_parts_and_compressor_and_small_for_small_nars() {
        const MIB: u64 = 1 << 20;
        assert!(memory(Compression::Zstd(3), 1000) < 8 * MIB);
        assert!(memory(Compression::None, 1 << 40) > 40 * MIB);
        assert!(memory(Compression::Xz(9), 1 << 30) > 600 * MIB);
    }
}
