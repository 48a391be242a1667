//! A NAR from the store path to the object in one pass: a blocking thread reads, hashes and
//! compresses ([`crate::nix::nar::write`]), and fixed-size parts go through a short channel to the
//! service.
//!
//! Memory is a few parts, whatever the size. The object appears whole or not at all: a small one is
//! one `put` after the last check; a large one is a multipart upload, completed only when size and
//! hash of the NAR are what Nix's database says, and aborted otherwise.

use std::io::{self, Write};
use std::sync::Arc;

use ::object_store::path::Path;
use ::object_store::{MultipartUpload, PutPayload};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::explain;
use super::open::Open;
use super::transfers::UnderWay;
use super::{multipart_options, put_options};
use crate::capability::CapabilityError;
use crate::capability::nix_store::Nar;
use crate::nix::nar::{self, Compression, NarError, Written};

/// Size of a part: over the 5 MiB that S3 wants, equal for all but the last as R2 wants, and 10,000
/// of them (S3's most) are 78 GiB.
pub const PART: usize = 8 << 20;
/// Parts on their way at once. With the one that is filled and the one in the channel, five parts
/// of memory.
const PARALLEL: usize = 3;
/// Parts between the compressor and the sender.
const WAITING: usize = 1;
/// What compressors may add to bytes that do not compress.
const OVERHEAD: u64 = 64 << 10;
/// What a binary cache serves NARs as (Nix 2.34 `nix copy --to s3://`).
pub const CONTENT_TYPE: &str = "application/x-nix-nar";

/// Puts the NAR under `path`.
///
/// # Errors
/// `permanent` if the store path is not what Nix's database says, `not-found` if it is gone, or as
/// the store has it.
pub async fn put_nar(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: Nar,
    under_way: Arc<UnderWay>,
) -> Result<Written, CapabilityError> {
    let (sender, mut parts) = mpsc::channel(WAITING);
    let first_size = usize::try_from(nar.expected.nar_size.saturating_add(OVERHEAD))
        .map_or(PART, |size| size.min(PART));
    let writing = tokio::task::spawn_blocking(move || {
        let mut filler = Filler { sender, part: Vec::with_capacity(first_size) };
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
    let Some(second) = parts.recv().await else {
        let written = written.await?;
        let stored = open
            .store
            .put_opts(path, PutPayload::from(first), put_options(open, CONTENT_TYPE))
            .await;
        return stored
            .map(|_| written)
            .map_err(|error| explain(open, "put", path.as_ref(), &error));
    };
    let failed = |error: &::object_store::Error| explain(open, "put", path.as_ref(), error);
    let upload = open
        .store
        .put_multipart_opts(path, multipart_options(open, CONTENT_TYPE))
        .await
        .map_err(|error| failed(&error))?;
    let mut upload = Upload { inner: Some(upload), sending: JoinSet::new(), under_way };
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
    match result {
        Ok(written) => upload.complete().await.map(|()| written).map_err(|error| failed(&error)),
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

fn nar_error(error: &NarError) -> CapabilityError {
    let message = error.to_string();
    match error {
        NarError::Corrupt { .. } => CapabilityError::permanent(message),
        NarError::Gone { .. } => CapabilityError::not_found(message),
        NarError::Read { .. } | NarError::Write { .. } => CapabilityError::transient(message),
    }
}

/// Gathers what is written into parts.
struct Filler {
    sender: mpsc::Sender<Bytes>,
    part: Vec<u8>,
}

impl Filler {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        self.sender
            .blocking_send(part.into())
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload ended early"))
    }
}

impl Write for Filler {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (now, _) = bytes.split_at(bytes.len().min(PART - self.part.len()));
        self.part.extend_from_slice(now);
        if self.part.len() >= PART {
            self.send()?;
            self.part = Vec::with_capacity(PART);
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A multipart upload that is aborted unless it is completed, also when the run that wants it is
/// cut off.
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    sending: JoinSet<::object_store::Result<()>>,
    under_way: Arc<UnderWay>,
}

impl Upload {
    async fn send(&mut self, part: Bytes) -> ::object_store::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.settle(PARALLEL - 1).await?;
        if let Some(upload) = &mut self.inner {
            let (under_way, length) = (Arc::clone(&self.under_way), part.len());
            let sending = upload.put_part(part.into());
            self.sending.spawn(async move { sending.await.map(|()| under_way.sent(length)) });
        }
        Ok(())
    }

    /// Waits until at most `most` parts are on their way.
    async fn settle(&mut self, most: usize) -> ::object_store::Result<()> {
        while self.sending.len() > most {
            match self.sending.join_next().await {
                Some(Ok(result)) => result?,
                Some(Err(source)) => return Err(::object_store::Error::JoinError { source }),
                None => break,
            }
        }
        Ok(())
    }

    async fn complete(mut self) -> ::object_store::Result<()> {
        let Some(upload) = &mut self.inner else { return Ok(()) };
        let completed = upload.complete().await;
        match completed {
            Ok(_) => {
                self.inner = None;
                Ok(())
            }
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn abort(mut self) {
        self.sending.shutdown().await;
        if let Some(upload) = self.inner.take() {
            abort(upload).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) =
            (self.inner.take(), tokio::runtime::Handle::try_current())
        {
            self.sending.abort_all();
            runtime.spawn(abort(upload));
        }
    }
}

/// What is left when even this fails is invisible and costs space; a lifecycle rule for incomplete
/// uploads removes it.
async fn abort(mut upload: Box<dyn MultipartUpload>) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(%error, "an incomplete upload could not be aborted");
    }
}
