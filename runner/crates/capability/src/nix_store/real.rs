//! The store of a Nix on this machine: its database, and the files below its store directory.

use super::{Backend, Budget, DirectoryEntry, TakeInfo, tree};
use crate::CapabilityError;
use hookrun_nix::database::{Database, DatabaseError};
use hookrun_nix::derivation::{Derivation, DerivationError, MAX_SIZE};
use hookrun_nix::event::NixDirs;
use hookrun_nix::nar::Source;

/// The store of one Nix. It keeps nothing open: every call reads the current state of the database.
#[derive(Debug)]
pub struct Real {
    dirs: NixDirs,
}

impl Real {
    /// Returns the store of the Nix with these directories.
    pub fn new(dirs: NixDirs) -> Self {
        Self { dirs }
    }
}

impl Backend for Real {
    fn each_info(&self, paths: &[String], take: &mut TakeInfo<'_>) -> Result<(), CapabilityError> {
        Database::open(&self.dirs)?.each_info(paths, take)
    }

    fn closure(&self, paths: &[String]) -> Result<Vec<String>, CapabilityError> {
        Ok(Database::open(&self.dirs)?.closure(paths)?)
    }

    fn derivation(&self, path: &str, budget: &mut Budget) -> Result<Derivation, CapabilityError> {
        // An error here has the same cause as the error of reading the file, which follows.
        budget.take(std::fs::metadata(self.dirs.real_path(path)).map_or(0, |found| found.len()))?;
        Ok(Derivation::read_in(&self.dirs, path, MAX_SIZE)?)
    }

    fn list_directory(
        &self,
        path: &str,
        relative: &str,
        budget: &mut Budget,
    ) -> Result<Vec<DirectoryEntry>, CapabilityError> {
        tree::list(&self.dirs.real_path(path), relative, budget)
    }

    fn read_file(
        &self,
        path: &str,
        relative: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, CapabilityError> {
        tree::read(&self.dirs.real_path(path), relative, offset, length)
    }

    fn nar_source(&self, path: &str) -> Source {
        Source::Path(self.dirs.real_path(path))
    }
}

impl From<DatabaseError> for CapabilityError {
    fn from(error: DatabaseError) -> Self {
        let message = error.to_string();
        match error {
            // These errors may pass: Nix may return, a permission may be restored, a checkpoint may
            // finish.
            DatabaseError::Missing { .. }
            | DatabaseError::Open { .. }
            | DatabaseError::Query { .. } => Self::transient(message),
            DatabaseError::Row { .. } => Self::permanent(message),
            DatabaseError::TooLarge => Self::limit(message),
        }
    }
}

impl From<DerivationError> for CapabilityError {
    fn from(error: DerivationError) -> Self {
        let message = error.to_string();
        match error {
            DerivationError::Path { .. } => Self::invalid(message),
            DerivationError::Read { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                Self::not_found(message)
            }
            DerivationError::Read { .. } => Self::transient(message),
            DerivationError::TooLarge { .. } => Self::limit(message),
            DerivationError::Parse { .. } => Self::permanent(message),
        }
    }
}
