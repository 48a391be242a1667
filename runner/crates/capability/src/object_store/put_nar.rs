//! Uploads a store path as a NAR in one pass: a blocking thread reads, hashes and
//! compresses ([`hookrun_nix::nar::write`]), and fixed-size parts go through a short channel to the
//! service.
//!
//! Memory is a few parts, whatever the size. The object appears whole or not at all: a small one is
//! one `put` after the last check; a large one is a multipart upload, completed only when size and
//! hash of the NAR are what Nix's database says, and aborted otherwise. One that a killed process
//! has left is aborted by the next ([`super::half_done`]).

use std::io::{self, Write};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::multipart::PartId;
use ::object_store::path::Path;
use ::object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::{Answer, explain};
use super::half_done::{Entry, HalfDone, Record};
use super::open::{Open, Parts};
use super::transfers::UnderWay;
use super::{multipart_options, put_options};
use crate::CapabilityError;
use crate::nix_store::Nar;
use hookrun_nix::nar::{self, Compression, EncodeError, NarError, Written};

/// Size of a part, unless that would be too many parts: over the 5 MiB that S3 wants, and equal
/// for all but the last as R2 wants.
pub(super) const PART: usize = 8 << 20;
/// Parts of one upload: S3 takes 10,000, and compressed bytes may be a few more than the NAR's.
const MAX_PARTS: u64 = 9_900;
/// Parts on their way at once.
const PARALLEL: usize = 3;
/// Parts between the compressor and the sender.
const WAITING: usize = 1;
/// Parts in memory at once: with the one that is filled.
const IN_MEMORY: u64 = (PARALLEL + WAITING + 1) as u64;
/// What compressors may add to bytes that do not compress.
const OVERHEAD: u64 = 64 << 10;
/// What a binary cache serves NARs as (Nix 2.34 `nix copy --to s3://`).
pub(super) const CONTENT_TYPE: &str = "application/x-nix-nar";
/// For removing what killed processes have left, before the first upload.
const SWEEP_TIME: Duration = Duration::from_mins(1);

/// The size of the parts of a NAR of `nar_size` bytes.
fn part_size(nar_size: u64) -> usize {
    let times = nar_size.div_ceil(PART as u64 * MAX_PARTS).max(1);
    usize::try_from(times).unwrap_or(usize::MAX).saturating_mul(PART)
}

/// About the most memory that putting a NAR of `nar_size` bytes takes.
pub(super) fn memory(compression: Compression, nar_size: u64) -> u64 {
    let parts = (part_size(nar_size) as u64).saturating_mul(IN_MEMORY);
    compression.memory(nar_size).saturating_add(parts.min(nar_size.saturating_add(OVERHEAD)))
}

/// Puts the NAR under `path`.
///
/// # Errors
/// `permanent` if the store path is not what Nix's database says, `not-found` if it is gone, or as
/// the store has it.
pub(super) async fn put_nar(
    open: &Open,
    path: &Path,
    compression: Compression,
    nar: Nar,
    half_done: &HalfDone,
    under_way: Arc<UnderWay>,
) -> Result<Written, CapabilityError> {
    let part = part_size(nar.expected.nar_size);
    let (sender, mut parts) = mpsc::channel(WAITING);
    let first_size = usize::try_from(nar.expected.nar_size.saturating_add(OVERHEAD))
        .map_or(part, |size| size.min(part));
    let writing = tokio::task::spawn_blocking(move || {
        let mut filler = Filler { sender, size: part, part: Vec::with_capacity(first_size) };
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
    let upload = Upload::begin(open, path, half_done, under_way).await;
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
    match upload.complete().await {
        Ok(()) => Ok(written),
        // The answer may have been lost on its way: then the upload is unknown now, and the object
        // is there.
        Err(_) if is_there(open, path, written.file_size).await => {
            upload.done();
            Ok(written)
        }
        Err(error) => {
            upload.abort().await;
            Err(failed(&error))
        }
    }
}

/// Returns whether there is an object of so many bytes.
async fn is_there(open: &Open, path: &Path, size: u64) -> bool {
    open.store.head(path).await.is_ok_and(|found| found.size == size)
}

fn nar_error(error: &NarError) -> CapabilityError {
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
struct Filler {
    sender: mpsc::Sender<Bytes>,
    size: usize,
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

/// How parts are sent.
enum Way {
    /// The service names the upload.
    Named { parts: Parts, key: Path, id: String, sent: Vec<(usize, PartId)> },
    /// The library keeps what there is to know.
    Plain(Box<dyn MultipartUpload>),
}

/// A part that was sent, with its number where the upload has a name.
type Sent = Option<(usize, PartId)>;

/// A multipart upload that is aborted unless it is completed, also when the run that wants it is
/// cut off.
struct Upload {
    way: Option<Way>,
    parts: usize,
    sending: JoinSet<::object_store::Result<Sent>>,
    record: Option<Record>,
    under_way: Arc<UnderWay>,
}

impl Upload {
    async fn begin(
        open: &Open,
        path: &Path,
        half_done: &HalfDone,
        under_way: Arc<UnderWay>,
    ) -> ::object_store::Result<Self> {
        let options = multipart_options(open, CONTENT_TYPE);
        let way = match &open.parts {
            Some(parts) => {
                let key = parts.key(path);
                let id = parts.store().create_multipart_opts(&key, options).await?;
                Way::Named { parts: parts.clone(), key, id, sent: Vec::new() }
            }
            None => Way::Plain(open.store.put_multipart_opts(path, options).await?),
        };
        let id = match &way {
            Way::Named { id, .. } => Some(id.as_str()),
            Way::Plain(_) => None,
        };
        let entry = Entry::new(&open.name, &open.place, path.as_ref(), id);
        let leaves_something = id.is_some() || open.directory.is_some();
        // From here on it is aborted if it is dropped.
        let sending = JoinSet::new();
        let mut upload = Self { way: Some(way), parts: 0, sending, record: None, under_way };
        if leaves_something {
            let half_done = half_done.clone();
            let begun = tokio::task::spawn_blocking(move || half_done.begin(&entry)).await;
            upload.record = begun.ok().flatten();
        }
        Ok(upload)
    }

    async fn send(&mut self, part: Bytes) -> ::object_store::Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.settle(PARALLEL - 1).await?;
        let number = self.parts;
        self.parts += 1;
        let (under_way, length) = (Arc::clone(&self.under_way), part.len());
        match &mut self.way {
            Some(Way::Named { parts, key, id, .. }) => {
                let (store, key, id) = (parts.store(), key.clone(), id.clone());
                self.sending.spawn(async move {
                    let sent = store.put_part(&key, &id, number, part.into()).await?;
                    under_way.sent(length);
                    Ok(Some((number, sent)))
                });
            }
            Some(Way::Plain(upload)) => {
                let sent = upload.put_part(part.into());
                self.sending.spawn(async move {
                    sent.await?;
                    under_way.sent(length);
                    Ok(None)
                });
            }
            None => {}
        }
        Ok(())
    }

    /// Waits until at most `most` parts are on their way.
    async fn settle(&mut self, most: usize) -> ::object_store::Result<()> {
        while self.sending.len() > most {
            match self.sending.join_next().await {
                Some(Ok(result)) => {
                    if let (Some(part), Some(Way::Named { sent, .. })) = (result?, &mut self.way) {
                        sent.push(part);
                    }
                }
                Some(Err(source)) => return Err(::object_store::Error::JoinError { source }),
                None => break,
            }
        }
        Ok(())
    }

    async fn complete(&mut self) -> ::object_store::Result<()> {
        match &mut self.way {
            Some(Way::Named { parts, key, id, sent }) => {
                sent.sort_by_key(|(number, _)| *number);
                let sent = sent.iter().map(|(_, part)| part.clone()).collect();
                parts.store().complete_multipart(key, id, sent).await?;
            }
            Some(Way::Plain(upload)) => drop(upload.complete().await?),
            None => {}
        }
        self.done();
        Ok(())
    }

    /// The object is there: there is nothing to abort.
    fn done(&mut self) {
        self.way = None;
        self.record = None;
    }

    async fn abort(mut self) {
        self.sending.shutdown().await;
        if let Some(way) = self.way.take() {
            abort(way, self.record.take()).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(way), Ok(runtime)) = (self.way.take(), tokio::runtime::Handle::try_current()) {
            self.sending.abort_all();
            runtime.spawn(abort(way, self.record.take()));
        }
    }
}

/// What is left when even this fails is invisible and costs space; a lifecycle rule for incomplete
/// uploads removes it. The record of it goes last.
async fn abort(way: Way, record: Option<Record>) {
    let aborted = match way {
        Way::Named { parts, key, id, .. } => parts.store().abort_multipart(&key, &id).await,
        Way::Plain(mut upload) => upload.abort().await,
    };
    if let Err(error) = aborted {
        tracing::warn!(%error, "an incomplete upload could not be aborted");
    }
    drop(record);
}

/// Ends the uploads to `open` that killed processes have left.
pub(super) async fn sweep(open: &Open, half_done: &HalfDone) {
    // What is not swept in time is left to the next process.
    let _swept = tokio::time::timeout(SWEEP_TIME, sweep_all(open, half_done)).await;
}

async fn sweep_all(open: &Open, half_done: &HalfDone) {
    let (records, name, place) = (half_done.clone(), open.name.clone(), open.place.clone());
    let found = tokio::task::spawn_blocking(move || records.left(&name, &place)).await;
    for left in found.unwrap_or_default() {
        let Entry { key, upload, .. } = &left.entry;
        let ended = match (&open.parts, upload, &open.directory) {
            (Some(parts), Some(id), _) => {
                let Ok(path) = Path::parse(key) else { continue };
                match parts.store().abort_multipart(&parts.key(&path), id).await {
                    Ok(()) => true,
                    // Ended by somebody else, or completed after all.
                    Err(error) => Answer::of(&error).is_some_and(|answer| answer.status == 404),
                }
            }
            (_, None, Some(directory)) => remove_staged(&directory.join(key)).is_ok(),
            _ => true,
        };
        if ended {
            left.remove();
        }
    }
}

/// Removes the files in which the library gathers what becomes `file`: its name with `#NUMBER`.
fn remove_staged(file: &FilePath) -> io::Result<()> {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return Ok(()) };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let found = entry.file_name();
        let number = found
            .to_str()
            .zip(name.to_str())
            .and_then(|(found, name)| found.strip_prefix(name)?.strip_prefix('#'));
        if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
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

    #[test]
    fn only_what_was_gathered_for_the_object_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.nar", "a.nar#1", "a.nar#12", "a.nar#x", "a.nar.zst#1"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        remove_staged(&dir.path().join("a.nar")).unwrap();
        remove_staged(&dir.path().join("none/b.nar")).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a.nar", "a.nar#x", "a.nar.zst#1"]);
    }
}
