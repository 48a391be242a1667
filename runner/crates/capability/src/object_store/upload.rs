//! A multipart upload, which is completed or aborted, and the end of those that killed processes
//! have left.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::MultipartUpload;
use ::object_store::multipart::PartId;
use ::object_store::path::Path;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::attributes::ObjectAttributes;
use super::error::Answer;
use super::half_done::{Entry, HalfDone, Record};
use super::once::{self, Creation};
use super::open::{Open, Parts};
use super::stored::e_tag_of_part_tags;
use super::transfers::UnderWay;

/// Parts on their way at once.
pub(super) const PARALLEL: usize = 3;
/// For parts that are on their way when their upload is aborted.
const PARTS_TIME: Duration = Duration::from_secs(10);
/// For removing what killed processes have left, before the first upload.
const SWEEP_TIME: Duration = Duration::from_mins(1);

/// How parts are sent.
enum Way {
    /// The service names the upload.
    Named { parts: Parts, key: Path, id: String, sent: Vec<(usize, PartId)> },
    /// The library keeps what there is to know. In a directory, the object is gathered under
    /// another name.
    Plain { upload: Box<dyn MultipartUpload>, staged: Option<Path> },
}

/// A part that was sent, with its number where the upload has a name.
type Sent = Option<(usize, PartId)>;

/// A multipart upload that is aborted unless it is completed, also when the run that wants it is
/// cut off.
pub(super) struct Upload {
    way: Option<Way>,
    parts: usize,
    sending: JoinSet<::object_store::Result<Sent>>,
    record: Option<Record>,
    under_way: Arc<UnderWay>,
}

impl Upload {
    pub(super) async fn begin(
        open: &Open,
        path: &Path,
        attributes: &ObjectAttributes,
        half_done: &HalfDone,
        under_way: Arc<UnderWay>,
    ) -> ::object_store::Result<Self> {
        let options = attributes.multipart_options(open);
        let way = match &open.parts {
            Some(parts) => {
                let key = parts.key(path);
                let id = parts.store().create_multipart_opts(&key, options).await?;
                Way::Named { parts: parts.clone(), key, id, sent: Vec::new() }
            }
            None => {
                let staged = open.directory.is_some().then(|| staged(path));
                let target = staged.as_ref().unwrap_or(path);
                let upload = open.store.put_multipart_opts(target, options).await?;
                Way::Plain { upload, staged }
            }
        };
        let (id, key) = match &way {
            Way::Named { id, .. } => (Some(id.as_str()), path),
            Way::Plain { staged, .. } => (None, staged.as_ref().unwrap_or(path)),
        };
        let entry = Entry::new(&open.name, &open.place, key.as_ref(), id);
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

    pub(super) async fn send(&mut self, part: Bytes) -> ::object_store::Result<()> {
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
            Some(Way::Plain { upload, .. }) => {
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
    pub(super) async fn settle(&mut self, most: usize) -> ::object_store::Result<()> {
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

    /// Makes the object appear, unless there is one under its name. Then the upload is not ended.
    pub(super) async fn complete(
        &mut self,
        open: &Open,
        path: &Path,
    ) -> ::object_store::Result<Creation> {
        let creation = match &mut self.way {
            Some(Way::Named { parts, key, id, sent }) => {
                sent.sort_by_key(|(number, _)| *number);
                let complete = || {
                    let (store, key, id) = (parts.store(), key.clone(), id.clone());
                    let sent = sent.iter().map(|(_, part)| part.clone()).collect();
                    async move { store.complete_multipart(&key, &id, sent).await.map(drop) }
                };
                once::complete(open, path, parts.is_s3, complete).await?
            }
            Some(Way::Plain { upload, staged }) => {
                upload.complete().await?;
                match staged {
                    Some(staged) => once::rename(open, staged, path).await?,
                    None => Creation::Created,
                }
            }
            None => Creation::Created,
        };
        if creation == Creation::Created || matches!(self.way, Some(Way::Plain { .. })) {
            self.done();
        }
        Ok(creation)
    }

    /// The ETag that S3 would give the object; empty if that is not known.
    pub(super) fn e_tag(&self) -> String {
        match &self.way {
            Some(Way::Named { sent, .. }) => {
                let mut sent: Vec<_> = sent.iter().collect();
                sent.sort_by_key(|(number, _)| *number);
                e_tag_of_part_tags(sent.iter().map(|(_, part)| part.content_id.as_str()))
            }
            _ => String::new(),
        }
    }

    /// Notes that the object is stored, so that nothing is aborted.
    pub(super) fn done(&mut self) {
        self.way = None;
        self.record = None;
    }

    /// Aborts the upload, when the parts that are on their way have arrived: a service may keep one
    /// that arrives later.
    pub(super) async fn abort(mut self) {
        let ended = async { while self.sending.join_next().await.is_some() {} };
        // The others are cut off.
        let _in_time = tokio::time::timeout(PARTS_TIME, ended).await;
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

/// Aborts an upload. If that fails, its parts stay and cost space, and its record stays for the
/// next process. Otherwise the record is removed last.
async fn abort(way: Way, record: Option<Record>) {
    let aborted = match way {
        Way::Named { parts, key, id, .. } => parts.store().abort_multipart(&key, &id).await,
        Way::Plain { mut upload, .. } => upload.abort().await,
    };
    // The service does not know it any longer: it has been completed, or ended by others.
    let aborted = aborted.or_else(|error| {
        let is_unknown = Answer::of(&error).is_some_and(|answer| answer.status == 404);
        if is_unknown { Ok(()) } else { Err(error) }
    });
    if let Err(error) = aborted {
        tracing::warn!(%error, "an incomplete upload could not be aborted; the next worker tries again");
        if let Some(record) = record {
            record.leave();
        }
    }
}

/// The end of the names under which objects are gathered in a directory.
const STAGED: &str = ".part-";

/// A name beside `path` under which an object is gathered.
fn staged(path: &Path) -> Path {
    Path::from(format!("{path}{STAGED}{}", uuid::Uuid::now_v7().simple()))
}

/// Ends the uploads to `open` that killed processes have left.
pub(super) async fn sweep(open: &Open, half_done: &HalfDone) {
    // The next process removes the rest.
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
                    // Ended by another process, or completed.
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

/// Removes the files in which the library gathers what becomes `file`: its name with `#NUMBER`; and
/// `file` itself, if it is not an object.
fn remove_staged(file: &FilePath) -> io::Result<()> {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return Ok(()) };
    if name.to_string_lossy().contains(STAGED) {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
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
    fn only_what_was_gathered_for_the_object_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let gathered = staged(&Path::from("b.nar")).to_string();
        for name in ["a.nar", "a.nar#1", "a.nar#12", "a.nar#x", "a.nar.zst#1", &gathered] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        remove_staged(&dir.path().join(&gathered)).unwrap();
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
