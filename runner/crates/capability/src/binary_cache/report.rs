//! What a push has done, and its progress for commands that show it.

use crate::CapabilityError;

/// The number of failures that a report lists.
const MAX_FAILURES: usize = 20;

/// A path that was not uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub path: String,
    pub error: CapabilityError,
}

/// The result of a push.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The number of paths, each once.
    pub paths: u64,
    /// The number of paths that were uploaded.
    pub uploaded: u64,
    /// The stored size of their NARs, in bytes.
    pub file_bytes: u64,
    /// The size of their NARs, in bytes.
    pub nar_bytes: u64,
    /// The number of paths that the cache had already.
    pub present: u64,
    /// The number of these whose narinfo got another signature.
    pub signed: u64,
    /// The number of uploaded paths that have no signature and no content address.
    pub unsigned: u64,
    /// The number of present paths that have other contents in the cache, and were left alone.
    pub different: u64,
    /// The first failures: the one that ended the push, if one did, is the first of them.
    pub failures: Vec<Failed>,
}

impl Report {
    /// Records a failure of one path, which ends the push if it `is_final`.
    pub(super) fn fail(&mut self, path: &str, error: CapabilityError, is_final: bool) {
        let failed = Failed { path: path.to_owned(), error };
        if is_final {
            self.failures.insert(0, failed);
            self.failures.truncate(MAX_FAILURES);
        } else if self.failures.len() < MAX_FAILURES {
            self.failures.push(failed);
        }
    }

    /// Returns the number of paths that were not uploaded.
    pub fn not_uploaded(&self) -> u64 {
        self.paths.saturating_sub(self.uploaded).saturating_sub(self.present)
    }
}

/// An event of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress<'a> {
    /// So many paths, with NARs of so many bytes, are looked at.
    Begun { paths: u64, nar_bytes: u64 },
    /// The cache has a path already.
    Present { path: &'a str, nar_size: u64 },
    /// The NAR of a path is stored.
    Stored { path: &'a str, nar_size: u64 },
    /// A path is visible to clients.
    Published { path: &'a str },
    /// A path is not uploaded.
    Failed { path: &'a str, error: &'a CapabilityError },
}
