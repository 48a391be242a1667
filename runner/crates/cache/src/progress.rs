//! What an interrupted verification has done: a file for each cache, from which the next run with
//! the same settings continues.
//!
//! `verifications/ID.json` in the state directory: one JSON object, version 1. Narinfos are
//! verified in the order of their hash parts, so one hash part tells how far it came.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::inventory::HashPart;
use crate::verify::Finding;

/// The format of the file.
const VERSION: u32 = 1;
/// The size limit of the file in bytes.
const MAX_SIZE: u64 = 256 << 20;
/// The maximum number of findings that are kept.
pub const MAX_FINDINGS: usize = 100_000;

/// The progress of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    version: u32,
    /// The settings that a continued run must have.
    settings: String,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// The last hash part before which everything is verified.
    pub after: Option<String>,
    /// The number of verified narinfos.
    pub checked: u64,
    /// The bytes of NARs that were read.
    pub bytes: u64,
    /// NARs with a compression that is not known.
    pub unchecked: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Progress {
    /// Returns the progress of a new run.
    pub fn new(settings: &str, started: u64) -> Self {
        Self { version: VERSION, settings: settings.to_owned(), started, ..Self::default() }
    }

    /// Returns the file of the cache at this place.
    pub fn file(directory: &Path, place: &str) -> PathBuf {
        let hash = Sha256::digest(place.as_bytes());
        // 8 bytes tell the caches of one machine apart.
        let name = hash.iter().take(8).fold(0_u64, |name, byte| name << 8 | u64::from(*byte));
        directory.join(format!("{name:016x}.json"))
    }

    /// Reads the progress of an interrupted run with the same settings.
    pub fn read(file: &Path, settings: &str) -> Option<Self> {
        let size = std::fs::metadata(file).ok()?.len();
        let text = (size <= MAX_SIZE).then(|| std::fs::read(file).ok())??;
        let progress: Self = serde_json::from_slice(&text).ok()?;
        let is_usable = progress.version == VERSION
            && progress.settings == settings
            && progress.after().is_some();
        is_usable.then_some(progress)
    }

    /// Returns the last verified hash part.
    pub fn after(&self) -> Option<HashPart> {
        self.after.as_deref().and_then(HashPart::parse)
    }

    /// Writes the file, or leaves the old one.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_continues_only_one_with_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let file = Progress::file(dir.path(), "file:///cache");
        assert_ne!(file, Progress::file(dir.path(), "file:///other"));
        let mut progress = Progress::new("content", 7);
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file, "content"), None, "it has done nothing");
        progress.after = Some("00bgd045z0d4icpbc2yyz4gx48ak44la".to_owned());
        progress.write(&file).unwrap();
        assert_eq!(Progress::read(&file, "content"), Some(progress));
        assert_eq!(Progress::read(&file, "quick"), None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(Progress::read(&file, "content"), None);
    }
}
