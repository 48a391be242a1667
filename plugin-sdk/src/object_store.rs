//! Named object stores of the configuration (`[object-stores.NAME]`). Wants `object_store`, grant
//! `object-store = ["NAME"]`. The time that calls take does not count as the plugin's wall time.
//!
//! A call for many objects takes about as long as a call for one: prefer [`ObjectStore::exists`]
//! of all keys, [`ObjectStore::put_all`] and [`ObjectStore::put_nars`].

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
    /// The .xz format.
    Xz,
}

impl Compression {
    /// Returns the word for the `Compression` line of a narinfo.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }
}

/// The result of storing several NARs.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredNars {
    /// Of the first paths, in their order: of all of them, or of those before the one that failed.
    pub stored: Vec<StoredNar>,
    /// Why there are no more.
    pub failure: Option<Error>,
}

/// One store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStore {
    name: String,
}

impl ObjectStore {
    /// The store `[object-stores.NAME]`.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of `keys` exist, in their order. An object that was seen or written a few minutes ago
    /// is not asked for again.
    ///
    /// # Errors
    /// Not granted, or the store does not answer.
    pub fn exists(&self, keys: &[String]) -> Result<Vec<bool>, Error> {
        host!("object-store.exists", object_store::exists(&self.name, keys))
    }

    /// The object under `key`, if there is one and it has at most `max_length` bytes.
    ///
    /// # Errors
    /// Not granted, too long, or the store does not answer.
    pub fn get(&self, key: &str, max_length: u64) -> Result<Option<Vec<u8>>, Error> {
        host!("object-store.get", object_store::get(&self.name, key, max_length))
    }

    /// Writes one small object.
    ///
    /// # Errors
    /// Not granted, or the store does not take it.
    pub fn put(&self, key: &str, content_type: &str, body: &[u8]) -> Result<(), Error> {
        host!("object-store.put", object_store::put(&self.name, key, content_type, body))
    }

    /// Writes small objects, many at a time and in no order. The first failure ends it; any of the
    /// others may have been written.
    ///
    /// # Errors
    /// Not granted, or the store does not take them.
    pub fn put_all(&self, objects: &[Object]) -> Result<(), Error> {
        host!("object-store.put-all", object_store::put_all(&self.name, objects))
    }

    /// Has the host read, hash, compress and send a NAR in one pass. `level`: none for the format's
    /// default.
    ///
    /// # Errors
    /// Not granted, the store does not take it, or the path is not what Nix's database says.
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

    /// Has the host do that for the NARs of valid paths, several at a time. Each is stored below
    /// `directory` under a name that no other bytes ever get ([`StoredNar`] has it). A NAR that
    /// another run is sending, or has sent a few minutes ago, is not sent again.
    ///
    /// # Errors
    /// Not granted, or not even the first was stored; a later failure comes with what was stored
    /// before.
    pub fn put_nars(
        &self,
        directory: &str,
        compression: Compression,
        level: Option<i32>,
        paths: &[String],
    ) -> Result<StoredNars, Error> {
        let (store, compression) = (&self.name, compression.as_str());
        let sent = host!(
            "object-store.put-nars",
            object_store::put_nars(store, directory, compression, level, paths)
        )?;
        Ok(StoredNars { stored: sent.stored, failure: sent.failure.map(Error::from) })
    }

    /// At most `max` keys that start with `prefix`.
    ///
    /// # Errors
    /// Not granted, or the store does not answer.
    pub fn list(&self, prefix: &str, max: u32) -> Result<Vec<String>, Error> {
        host!("object-store.list", object_store::list(&self.name, prefix, max))
    }
}
