//! Read access to the Nix store. Wants [`Scope::Outputs`](crate::Scope::Outputs) or
//! [`Scope::Closure`](crate::Scope::Closure), grant `nix-store = "outputs"` or `"closure"`. Paths
//! are full store paths.

use crate::Error;
use crate::bindings::imports::hookrun::host::nix_store;
use crate::error::host;
pub use nix_store::{Derivation, Entry, Nar, PathInfo};

/// Returns information about `paths`, in the same order; `None` for a path that is not valid.
///
/// # Errors
/// A path is outside the grant's scope.
pub fn path_infos(paths: &[String]) -> Result<Vec<Option<PathInfo>>, Error> {
    host!("nix-store.path-infos", nix_store::path_infos(paths))
}

/// Returns the closure of `paths`, references before referrers. A closure can be large, so call
/// [`path_infos`] for parts of it.
///
/// # Errors
/// A path is outside the grant's scope.
pub fn closure(paths: &[String]) -> Result<Vec<String>, Error> {
    host!("nix-store.closure", nix_store::closure(paths))
}

/// Returns the derivation at `path`.
///
/// # Errors
/// The path is outside the grant's scope, or is not a derivation.
pub fn derivation(path: &str) -> Result<Derivation, Error> {
    host!("nix-store.read-derivation", nix_store::read_derivation(path))
}

/// Returns the entries of the directory `relative` below the store path `path`, sorted by name. If
/// `relative` is empty, the directory is `path` itself.
///
/// # Errors
/// The path is outside the grant's scope, or is not a directory.
pub fn list_directory(path: &str, relative: &str) -> Result<Vec<Entry>, Error> {
    host!("nix-store.list-directory", nix_store::list_directory(path, relative))
}

/// Reads at most `length` bytes, from `offset`, of the regular file `relative` below `path`.
/// Symlinks are not followed.
///
/// # Errors
/// The path is outside the grant's scope, or is not a regular file.
pub fn read_file(path: &str, relative: &str, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
    host!("nix-store.read-file", nix_store::read_file(path, relative, offset, length))
}

/// Opens the NAR serialisation of a valid path, for
/// [`ObjectStore::put_nar`](crate::object_store::ObjectStore::put_nar). The bytes stay in the host.
///
/// # Errors
/// The path is outside the grant's scope or not valid, or too many NARs are open.
pub fn open_nar(path: &str) -> Result<Nar, Error> {
    host!("nix-store.open-nar", nix_store::open_nar(path))
}
