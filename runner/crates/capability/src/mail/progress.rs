//! Records which recipients already have a message. A recipient with a temporary refusal is retried
//! with the next attempt of the task, and no recipient gets the message twice.
//!
//! There is one JSON file for each message of a task, below `mail-progress/` of the state
//! directory, which is written completely and renamed. It is kept longer than the task, because an
//! attempt may fail after its message was accepted. Files that are older than any task can be are
//! removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Refusal;

/// Age after which a file is removed. Tasks do not wait that long: `give-up-after` and the delay
/// that a plugin may request are a week each by default.
const KEEP: Duration = Duration::from_hours(30 * 24);
/// Maximum size in bytes of a file that is read: enough for hundreds of recipients.
const MAX_SIZE: u64 = 1 << 20;

/// The recipients that have one message of a task.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The file. `None` for a message without an identity.
    path: Option<PathBuf>,
    seen: DeliveryRecord,
    changed: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct DeliveryRecord {
    /// The recipients that have the message.
    delivered: Vec<String>,
    /// The recipients that were refused permanently.
    refused: Vec<Refusal>,
}

impl Progress {
    /// Reads the progress of the message `message_id` of `task`. A file that cannot be read counts
    /// as missing.
    pub(super) fn of(directory: &Path, task: &str, message_id: &str) -> Self {
        let digest = Sha256::new_with_prefix(task).chain_update([0]).chain_update(message_id);
        let path = directory.join(format!("{:.32x}.json", digest.finalize()));
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text));
        let seen = read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path: Some(path), seen, changed: false }
    }

    /// Writes the current progress, to make sure that later progress can be recorded.
    pub(super) fn claim(&mut self) -> std::io::Result<()> {
        self.changed = true;
        self.save()
    }

    /// Returns whether nothing more has to be done for this recipient.
    pub(super) fn is_settled(&self, recipient: &str) -> bool {
        self.seen.delivered.iter().any(|known| known == recipient)
            || self.seen.refused.iter().any(|known| known.recipient == recipient)
    }

    /// Returns how many recipients have the message.
    pub(super) fn delivered_count(&self) -> usize {
        self.seen.delivered.len()
    }

    /// Returns the recipients that were refused permanently.
    pub(super) fn refused(&self) -> &[Refusal] {
        &self.seen.refused
    }

    /// Records that the recipient has the message.
    pub(super) fn delivered(&mut self, recipient: &str) {
        self.seen.delivered.push(recipient.to_owned());
        self.changed = true;
    }

    /// Records that the recipient was refused permanently.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.seen.refused.push(refusal);
        self.changed = true;
    }

    /// Forgets permanent refusals, so that these recipients may be tried again.
    pub(super) fn forget_refused(&mut self) {
        self.seen.refused.clear();
        self.changed = true;
    }

    /// Writes and syncs the file, and removes old files.
    pub(super) fn save(&mut self) -> std::io::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return Ok(()) };
        let directory = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.seen)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()?;
        self.changed = false;
        remove_old(directory)
    }
}

fn remove_old(directory: &Path) -> std::io::Result<()> {
    let Some(oldest) = SystemTime::now().checked_sub(KEEP) else { return Ok(()) };
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.metadata().and_then(|found| found.modified()).is_ok_and(|time| time < oldest) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_known_to_later_attempts_of_the_same_task_only() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("mail-progress");
        let mut progress = Progress::of(&directory, "task", "<one@host>");
        assert!(!progress.is_settled("a@b") && progress.delivered_count() == 0);
        progress.delivered("a@b");
        progress.refuse(Refusal {
            recipient: "gone@b".into(),
            transient: false,
            reason: "550 no".into(),
        });
        progress.save().unwrap();
        let progress = Progress::of(&directory, "task", "<one@host>");
        assert!(progress.is_settled("a@b") && progress.is_settled("gone@b"));
        assert!(progress.delivered_count() == 1 && !progress.is_settled("c@b"));
        assert_eq!(progress.refused()[0].reason, "550 no");
        for (task, message) in [("other", "<one@host>"), ("task", "<two@host>")] {
            assert!(Progress::of(&directory, task, message).delivered_count() == 0);
        }
    }

    #[test]
    fn old_files_are_removed_and_damaged_ones_count_as_missing() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("old.json");
        std::fs::write(&old, "{").unwrap();
        let long_ago = SystemTime::now() - KEEP - Duration::from_hours(1);
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        let mut progress = Progress::of(directory.path(), "task", "<one@host>");
        let path = progress.path.clone().unwrap();
        std::fs::write(&path, "{").unwrap();
        assert!(Progress::of(directory.path(), "task", "<one@host>").delivered_count() == 0);
        progress.delivered("a@b");
        progress.save().unwrap();
        assert!(!old.exists() && path.exists());
    }
}
