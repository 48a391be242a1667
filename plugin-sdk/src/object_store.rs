//! The object stores of the configuration (`[object-stores.NAME]`). Wants `object_store`, grant
//! `object-store = ["NAME"]`. The time that calls take does not count as the plugin's wall time.
//!
//! A call for many objects takes about as long as a call for one, so pass many keys to
//! [`ObjectStore::exists`], and use [`ObjectStore::put_all`]. To upload store paths to a binary
//! cache, use [`binary_cache`](crate::binary_cache).

use crate::Error;
use crate::bindings::imports::hookrun::host::object_store;
use crate::error::host;
use crate::nix_store::Nar;
pub use object_store::{Object, StoredNar};

/// The compression of a stored NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// No compression.
    None,
    /// Zstandard, RFC 8878.
    #[default]
    Zstd,
    /// The `.xz` format.
    Xz,
}

impl Compression {
    /// Returns the value of the `Compression` line of a narinfo.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }
}

/// An object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStore {
    name: String,
}

impl ObjectStore {
    /// Returns the store `[object-stores.NAME]`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Returns the name of the store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns for each of `keys` whether the object exists, in the same order. Results are cached
    /// for some minutes.
    ///
    /// # Errors
    /// The call is not granted, or the store does not answer.
    pub fn exists(&self, keys: &[String]) -> Result<Vec<bool>, Error> {
        host!("object-store.exists", object_store::exists(&self.name, keys), |host| {
            let known = host.list(&self.name, "", u32::MAX);
            Ok(keys.iter().map(|key| known.contains(key)).collect())
        })
    }

    /// Reads the object with the key `key`; `None` if it does not exist.
    ///
    /// # Errors
    /// The call is not granted, the object has more than `max_length` bytes, or the store does not
    /// answer.
    pub fn get(&self, key: &str, max_length: u64) -> Result<Option<Vec<u8>>, Error> {
        host!("object-store.get", object_store::get(&self.name, key, max_length), |host| {
            host.get(&self.name, key, max_length)
        })
    }

    /// Writes a small object.
    ///
    /// # Errors
    /// The call is not granted, or the store refuses the object.
    pub fn put(&self, key: &str, content_type: &str, body: &[u8]) -> Result<(), Error> {
        host!("object-store.put", object_store::put(&self.name, key, content_type, body), |host| {
            host.put(&self.name, key, body);
            Ok(())
        })
    }

    /// Writes small objects, many at a time and in no particular order. The first failure ends the
    /// call; any of the other objects may have been written.
    ///
    /// # Errors
    /// The call is not granted, or the store refuses an object.
    pub fn put_all(&self, objects: &[Object]) -> Result<(), Error> {
        host!("object-store.put-all", object_store::put_all(&self.name, objects), |host| {
            for object in objects {
                host.put(&self.name, &object.key, &object.body);
            }
            Ok(())
        })
    }

    /// Reads, hashes, compresses and sends a NAR in the host, in one pass. If `level` is `None`,
    /// the default of the format is used.
    ///
    /// # Errors
    /// The call is not granted, the store refuses the object, or the path differs from Nix's
    /// database.
    pub fn put_nar(
        &self,
        key: &str,
        compression: Compression,
        level: Option<i32>,
        nar: &Nar,
    ) -> Result<StoredNar, Error> {
        host!(
            "object-store.put-nar",
            object_store::put_nar(&self.name, key, compression.as_str(), level, nar)
        )
    }

    /// Returns at most `max` keys that start with `prefix`.
    ///
    /// # Errors
    /// The call is not granted, or the store does not answer.
    pub fn list(&self, prefix: &str, max: u32) -> Result<Vec<String>, Error> {
        host!("object-store.list", object_store::list(&self.name, prefix, max), |host| {
            Ok(host.list(&self.name, prefix, max))
        })
    }
}
