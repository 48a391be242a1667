//! The `object-store` interface: the stores that `[object-stores]` names, over one client library
//! for all services.
//!
//! A store is opened when it is first used and kept; one whose credentials are refused is opened
//! anew at the next call, so that changed files take effect. Which store a plugin may use is
//! decided before ([`crate::plugin::grants`]). Every object appears whole or not at all, and what
//! comes back never holds a secret ([`error`]).

mod error;
mod host;
mod open;
mod put_nar;
mod transfers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ::object_store::path::Path;
use ::object_store::{
    Attribute, Attributes, Error, GetResult, ObjectStoreExt as _, PutMultipartOptions, PutOptions,
    PutPayload,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

pub use self::transfers::Transfer;

use self::error::explain;
use self::open::Open;
use self::transfers::Transfers;
use super::nix_store::Nar;
use super::{CapabilityError, ErrorKind, Reach};
use crate::config::{self, Config};
use crate::dirs::Dirs;
use crate::nix::nar::{Compression, Written};

/// Longest key, in bytes: that of S3 (its user guide, "Naming Amazon S3 objects"); Azure and Google
/// Cloud have the same.
const MAX_KEY: usize = 1024;

/// Questions to one service at once.
const PARALLEL_REQUESTS: usize = 16;

/// The stores of an installation.
#[derive(Debug)]
pub struct ObjectStores {
    settings: BTreeMap<String, (config::ObjectStore, PathBuf)>,
    in_memory: bool,
    open: Mutex<BTreeMap<String, Open>>,
    /// Those whose credentials cannot be read again.
    held: Mutex<BTreeSet<String>>,
    transfers: Arc<Transfers>,
}

impl ObjectStores {
    /// The stores that the configuration names. Opens none.
    pub fn new(config: &Config, dirs: &Dirs) -> Self {
        let settings = config.object_stores.iter();
        let settings = settings
            .map(|(name, store)| (name.clone(), (store.clone(), dirs.object_store(name))))
            .collect();
        Self {
            settings,
            in_memory: false,
            open: Mutex::default(),
            held: Mutex::default(),
            transfers: Arc::default(),
        }
    }

    /// Stores of the same names in memory, for `hookrun test`.
    pub fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self { in_memory: true, ..Self::new(config, dirs) }
    }

    /// Reads the settings and the credentials of a store and tells where it is. Sends nothing.
    ///
    /// # Errors
    /// What is wrong with them, with the line to write.
    pub fn check(&self, name: &str) -> Result<String, CapabilityError> {
        self.open(name).map(|open| open.place)
    }

    /// Opens the store `name` now and keeps its client: this process is about to lose the right to
    /// read its credentials.
    ///
    /// # Errors
    /// As [`ObjectStores::check`].
    pub fn hold(&self, name: &str) -> Result<(), CapabilityError> {
        self.open(name)?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(())
    }

    /// What the store `name` needs of the operating system. One whose settings are wrong needs
    /// nothing: it cannot be used.
    pub fn reach(&self, name: &str) -> Reach {
        match self.settings.get(name) {
            Some((settings, directory)) if !self.in_memory => open::reach(settings, directory),
            _ => Reach::default(),
        }
    }

    /// Which of `keys` exist, in their order.
    ///
    /// # Errors
    /// `invalid` keys, or as the store has it.
    pub async fn exists(&self, name: &str, keys: &[String]) -> Result<Vec<bool>, CapabilityError> {
        let open = self.open(name)?;
        let paths: Vec<Path> = keys.iter().map(|key| path(name, key)).collect::<Result<_, _>>()?;
        let asked = futures_util::stream::iter(paths).map(|path| {
            let open = &open;
            async move {
                match open.store.head(&path).await {
                    Ok(_) => Ok(true),
                    Err(Error::NotFound { .. }) => Ok(false),
                    Err(error) => Err(explain(open, "look for", path.as_ref(), &error)),
                }
            }
        });
        let result = asked.buffered(PARALLEL_REQUESTS).try_collect().await;
        self.noticed(name, result)
    }

    /// The object under `key`, if there is one.
    ///
    /// # Errors
    /// `limit` if it has more than `max_length` bytes, an `invalid` key, or as the store has it.
    pub async fn get(
        &self,
        name: &str,
        key: &str,
        max_length: u64,
    ) -> Result<Option<Vec<u8>>, CapabilityError> {
        let open = self.open(name)?;
        let path = path(name, key)?;
        let result = match open.store.get(&path).await {
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(explain(&open, "get", key, &error)),
            Ok(object) => read(&open, key, object, max_length).await.map(Some),
        };
        self.noticed(name, result)
    }

    /// Writes one small object.
    ///
    /// # Errors
    /// An `invalid` key or content type, or as the store has it.
    pub async fn put(
        &self,
        name: &str,
        key: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<(), CapabilityError> {
        let open = self.open(name)?;
        let path = path(name, key)?;
        // It becomes a header.
        if content_type.is_empty() || !content_type.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            let shown = content_type.escape_debug();
            return Err(CapabilityError::invalid(format!(
                "`{shown}` is no content type; write for example `text/plain`"
            )));
        }
        let stored = open
            .store
            .put_opts(&path, PutPayload::from(body), put_options(&open, content_type))
            .await;
        self.noticed(name, stored.map(drop).map_err(|error| explain(&open, "put", key, &error)))
    }

    /// Reads, hashes, compresses and sends a NAR in one pass.
    ///
    /// # Errors
    /// `permanent` if the store path is corrupt, `not-found` if it is gone, an `invalid` key, or as
    /// the store has it.
    pub async fn put_nar(
        &self,
        name: &str,
        key: &str,
        compression: Compression,
        nar: Nar,
    ) -> Result<Written, CapabilityError> {
        let open = self.open(name)?;
        let path = path(name, key)?;
        let under_way =
            self.transfers.begin(name, &nar.expected.path, nar.expected.nar_size).into();
        let result = put_nar::put_nar(&open, &path, compression, nar, under_way).await;
        self.noticed(name, result)
    }

    /// At most `max` keys that start with `prefix`; fewer if they have more than `most` bytes
    /// together, which is then exceeded by the last of them.
    ///
    /// # Errors
    /// An `invalid` prefix, or as the store has it.
    pub async fn list(
        &self,
        name: &str,
        prefix: &str,
        max: u32,
        most: u64,
    ) -> Result<Vec<String>, CapabilityError> {
        let open = self.open(name)?;
        // Services list by whole segments here; what is after the last `/` is compared by us.
        let directory = match prefix.rsplit_once('/') {
            Some((directory, _)) => Some(path(name, directory)?),
            None => None,
        };
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut objects = open.store.list(directory.as_ref());
        let (mut keys, mut bytes) = (Vec::new(), 0);
        while keys.len() < max && bytes <= most {
            let key = match objects.next().await {
                None => break,
                Some(Ok(object)) => object.location.to_string(),
                Some(Err(error)) => {
                    return self.noticed(name, Err(explain(&open, "list", prefix, &error)));
                }
            };
            if key.starts_with(prefix) {
                bytes += key.len() as u64;
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// The uploads of NARs that are under way.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.transfers.list()
    }

    /// Writes a small object, reads it back and removes it. The text is a warning: everything but
    /// the removal worked.
    ///
    /// # Errors
    /// As the store has it.
    pub async fn try_out(&self, name: &str) -> Result<Option<String>, CapabilityError> {
        let key = format!("hookrun-check-{}", uuid::Uuid::now_v7());
        let body = key.clone().into_bytes();
        self.put(name, &key, "text/plain", body.clone()).await?;
        let read = self.get(name, &key, body.len() as u64).await?;
        let removed = self.open(name)?.store.delete(&path(name, &key)?).await;
        if read != Some(body) {
            return Err(CapabilityError::permanent(format!(
                "object store `{name}`: the object `{key}` was written and cannot be read back; \
                 check what is between this machine and the store"
            )));
        }
        let open = self.open(name)?;
        Ok(removed.err().map(|error| {
            let reason = explain(&open, "remove", &key, &error).message;
            format!("{reason}; uploads work without that permission, and `{key}` stays there")
        }))
    }

    /// The store called `name`, opened if it is not yet.
    fn open(&self, name: &str) -> Result<Open, CapabilityError> {
        let mut stores = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = stores.get(name) {
            return Ok(open.clone());
        }
        let Some((settings, directory)) = self.settings.get(name) else {
            return Err(CapabilityError::not_found(format!(
                "object store `{name}` is not defined; write [object-stores.{name}] in the configuration"
            )));
        };
        let open = if self.in_memory {
            open::in_memory(name)
        } else {
            open::open(name, settings, directory)?
        };
        stores.insert(name.to_owned(), open.clone());
        Ok(open)
    }

    /// Forgets a client that was refused: the next call reads the credentials again.
    fn noticed<T>(
        &self,
        name: &str,
        result: Result<T, CapabilityError>,
    ) -> Result<T, CapabilityError> {
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
        if result.as_ref().is_err_and(|error| error.kind == ErrorKind::Permanent)
            && !self.in_memory
            && !held()
        {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        result
    }
}

/// The body of an object, if it is not too long: what the service says first is not taken on trust.
async fn read(
    open: &Open,
    key: &str,
    object: GetResult,
    max_length: u64,
) -> Result<Vec<u8>, CapabilityError> {
    let name = &open.name;
    let too_long = || {
        CapabilityError::limit(format!(
            "object store `{name}`: `{key}` has more than the {max_length} bytes that were asked for"
        ))
    };
    if object.meta.size > max_length {
        return Err(too_long());
    }
    let mut body = Vec::new();
    let mut chunks = object.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| explain(open, "get", key, &error))?;
        if (body.len() as u64).saturating_add(chunk.len() as u64) > max_length {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A key as a plugin gives it: segments between single slashes, none of them `.` or `..`.
fn path(name: &str, key: &str) -> Result<Path, CapabilityError> {
    if key.len() > MAX_KEY {
        return Err(CapabilityError::invalid(format!(
            "object store `{name}`: a key of {} bytes; at most {MAX_KEY} are allowed",
            key.len()
        )));
    }
    Path::parse(key).ok().filter(|path| !path.as_ref().is_empty() && path.as_ref() == key).ok_or_else(|| {
        let shown = key.escape_debug();
        CapabilityError::invalid(format!(
            "object store `{name}`: `{shown}` is no key; write it without `.`, `..`, and leading, doubled or trailing slashes"
        ))
    })
}

fn attributes(open: &Open, content_type: &str) -> Attributes {
    if open.attributes {
        Attributes::from_iter([(Attribute::ContentType, content_type.to_owned())])
    } else {
        Attributes::new()
    }
}

fn put_options(open: &Open, content_type: &str) -> PutOptions {
    PutOptions { attributes: attributes(open, content_type), ..PutOptions::default() }
}

fn multipart_options(open: &Open, content_type: &str) -> PutMultipartOptions {
    PutMultipartOptions {
        attributes: attributes(open, content_type),
        ..PutMultipartOptions::default()
    }
}

#[cfg(test)]
mod tests;
