//! The Nix store, read only.

use std::path::PathBuf;

/// One valid path, opened for serialisation. The guest holds a handle to it; the bytes stay in the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nar {
    /// The store path.
    pub path: PathBuf,
    /// Size of the serialisation in bytes.
    pub size: u64,
}
