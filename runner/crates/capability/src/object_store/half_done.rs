//! A durable record of uploads in several parts that have begun and not ended, so that what a
//! killed process has left at a server is removed by the next one.
//!
//! `uploads/ID.json` in the state directory: one JSON object for each upload, [`Entry`], version 1.
//! The file is locked (`flock`) by the process that uploads, and removed when the upload has ended,
//! either way. A file without a lock belongs to a process that was killed. What a store cannot
//! abort now is tried again by later processes, for [`KEPT`].

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// How long an upload is remembered that cannot be aborted.
const KEPT: Duration = Duration::from_hours(7 * 24);
/// An entry is a few hundred bytes.
const MAX_ENTRY: u64 = 64 << 10;
/// The format of the entries.
const VERSION: u32 = 1;

/// The directory of the records; none: nothing is recorded.
#[derive(Debug, Clone, Default)]
pub(super) struct HalfDone(Option<PathBuf>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Entry {
    version: u32,
    /// The store's name in the configuration.
    pub store: String,
    /// Where the store is.
    pub place: String,
    pub key: String,
    /// The service's name for the upload, if it has one.
    pub upload: Option<String>,
}

impl Entry {
    /// The upload `upload` of `key` to the store `store` at `place`.
    pub(super) fn new(store: &str, place: &str, key: &str, upload: Option<&str>) -> Self {
        Self {
            version: VERSION,
            store: store.to_owned(),
            place: place.to_owned(),
            key: key.to_owned(),
            upload: upload.map(ToOwned::to_owned),
        }
    }
}

/// The record of an upload that is under way. Removed when this is dropped.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    stays: bool,
    _locked: File,
}

impl Record {
    /// Leaves the record for the next process: the upload could not be aborted.
    pub(super) fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.stays {
            // One that stays is found, and aborted in vain, by the next process.
            let _removed = std::fs::remove_file(&self.path);
        }
    }
}

/// A record whose process was killed. It stays unless it is removed.
#[derive(Debug)]
pub(super) struct Left {
    pub entry: Entry,
    path: PathBuf,
    age: Duration,
    _locked: File,
}

impl HalfDone {
    /// Records below `directory`, which need not exist.
    pub(super) fn below(directory: PathBuf) -> Self {
        Self(Some(directory))
    }

    pub(super) fn directory(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// Writes down that an upload has begun. Without a record, because the disk is full for
    /// example, the upload goes on: it is worth more.
    pub(super) fn begin(&self, entry: &Entry) -> Option<Record> {
        let directory = self.0.as_deref()?;
        let write = || -> std::io::Result<Record> {
            let path = directory.join(format!("{}.json", uuid::Uuid::now_v7()));
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let text = serde_json::to_vec(entry)?;
            let record = Record { path, stays: false, _locked: file.try_clone()? };
            file.write_all(&text)?;
            file.sync_all()?;
            Ok(record)
        };
        write()
            .inspect_err(|error| {
                let directory = directory.display();
                tracing::warn!(%error, %directory, "an upload that begins could not be recorded");
            })
            .ok()
    }

    /// The records of killed processes that are about the store `store` at `place`, and old ones
    /// of any store, which are removed.
    pub(super) fn left(&self, store: &str, place: &str) -> Vec<Left> {
        let Some(entries) = self.0.as_deref().and_then(|path| std::fs::read_dir(path).ok()) else {
            return Vec::new();
        };
        let left = entries.filter_map(|entry| look(entry.ok()?.path()));
        left.filter(|left| {
            if left.age > KEPT {
                left.remove();
            }
            left.age <= KEPT && left.entry.store == store && left.entry.place == place
        })
        .collect()
    }
}

impl Left {
    /// Forgets the upload: nothing of it is left.
    pub(super) fn remove(&self) {
        // One that stays is found again, and aborted in vain.
        let _removed = std::fs::remove_file(&self.path);
    }
}

fn look(path: PathBuf) -> Option<Left> {
    let mut file = File::open(&path).ok()?;
    // Another process, or this one, is at it.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let age = file.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
    let mut text = Vec::new();
    (&mut file).take(MAX_ENTRY).read_to_end(&mut text).ok()?;
    // A file that cannot be parsed is being written, or is from another version.
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    (entry.version == VERSION).then_some(Left { entry, path, age, _locked: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_killed_process_has_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let records = HalfDone::below(dir.path().to_owned());
        let entry = Entry::new("cache", "s3://bucket", "nar/a.nar", Some("upload-1"));
        let record = records.begin(&entry).unwrap();
        assert!(records.left("cache", "s3://bucket").is_empty(), "it is under way");
        // What the end of a process does.
        let path = record.path.clone();
        let text = std::fs::read(&path).unwrap();
        drop(record);
        assert!(!path.exists(), "it has ended");
        std::fs::write(&path, &text).unwrap();
        std::fs::write(dir.path().join("odd.json"), "{").unwrap();
        assert!(records.left("cache", "s3://other").is_empty());
        let left = records.left("cache", "s3://bucket");
        assert_eq!(left.iter().map(|left| &left.entry).collect::<Vec<_>>(), [&entry]);
        assert!(path.exists(), "it is not aborted yet");
        left[0].remove();
        assert!(!path.exists());
        assert!(HalfDone::default().begin(&entry).is_none());
    }
}
