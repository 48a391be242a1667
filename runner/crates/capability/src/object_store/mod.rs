//! The `object-store` interface: the stores that `[object-stores]` names, over one client library
//! for all services.
//!
//! A store is opened when it is first used and kept; one whose credentials are refused is opened
//! again at the next call, so that changed files take effect. Which store a plugin may use is
//! decided before ([`crate::grants`]). Every object appears whole or not at all, and what
//! comes back never holds a secret ([`error`]).

mod attributes;
mod bucket;
mod connector;
mod error;
mod half_done;
mod http_put;
mod nars;
mod once;
mod open;
mod pace;
mod present;
mod profile;
mod put_nar;
mod requests;
mod role;
mod s3;
mod signed;
mod stored;
mod throttle;
mod tls;
mod transfers;
mod upload;

pub use attributes::ObjectAttributes;
pub use bucket::{
    Bucket, Fetched, Incomplete, Listed, PARALLEL_REQUESTS as BUCKET_REQUESTS, Streamed,
    settings_of_url,
};
pub use nars::{SMALL_NAR, StoredNar};
pub use once::Creation;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::object_store::path::Path;
use ::object_store::{Error, ObjectStoreExt as _};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::OnceCell;

use self::connector::PAGES;
use self::error::{Answer, explain};
use self::half_done::HalfDone;
use self::nars::NarMemory;
use self::once::Name;
use self::open::Open;
use self::present::{Present, Uploads};
use self::requests::{contents, exists, path, read};
use self::transfers::Transfers;
use super::{CapabilityError, ErrorKind, SandboxNeeds, Service, ServiceFinding};
use hookrun_config::{self as config, Config, Grant, KeyError};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::outcome::Transfer;

/// Requests of one call to one service at once: so many times the latency is not waited for.
const PARALLEL_REQUESTS: usize = 32;

/// All pages of one list together.
const LIST_TIME: Duration = Duration::from_mins(10);

/// The stores of an installation.
#[derive(Debug)]
pub struct ObjectStores {
    settings: BTreeMap<String, (config::ObjectStore, PathBuf)>,
    in_memory: bool,
    open: Mutex<BTreeMap<String, Open>>,
    /// Those whose credentials cannot be read again.
    held: Mutex<BTreeSet<String>>,
    transfers: Arc<Transfers>,
    present: Present,
    uploads: Uploads,
    half_done: HalfDone,
    /// Those that have nothing left of killed processes.
    swept: Mutex<BTreeMap<String, Arc<OnceCell<()>>>>,
    /// Memory for uploads of NARs.
    memory: NarMemory,
}

/// A small object to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub content_type: String,
    pub body: Vec<u8>,
}

impl Service for ObjectStores {
    fn configure(config: &Config, dirs: &Dirs) -> Self {
        Self::new(config, dirs)
    }

    fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self::in_memory(config, dirs)
    }

    fn check(&self, config: &Config, dirs: &Dirs) -> Vec<ServiceFinding> {
        // A directory that is named and does not exist is reported by a trial as the user that runs
        // plugins, and not made here.
        let there = |name: &&String| self.needs_of(name).missing_directory(dirs).is_none();
        let checked = |name: &String| match self.check(name) {
            Ok(place) => Ok(format!("object store {name}: {place}")),
            Err(error) => Err(KeyError::new(&["object-stores", name], error.message)),
        };
        config.object_stores.keys().filter(there).map(checked).map(ServiceFinding::of).collect()
    }

    fn sandbox_needs(&self, grant: &Grant, _dirs: &Dirs) -> SandboxNeeds {
        let needs = grant.object_store.iter().map(|name| self.needs_of(name));
        needs.fold(SandboxNeeds::default(), SandboxNeeds::and)
    }

    fn hold_secrets(&self, _plugin: &str, grant: &Grant) -> Result<(), KeyError> {
        grant.object_store.iter().try_for_each(|name| {
            let held = self.hold(name);
            held.map_err(|error| KeyError::new(&["object-stores", name, "url"], error.message))
        })
    }
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
            present: Present::default(),
            uploads: Uploads::default(),
            half_done: HalfDone::below(dirs.uploads()),
            swept: Mutex::default(),
            memory: NarMemory::new(config.worker.upload_memory),
        }
    }

    /// Stores of the same names in memory, for `hookrun test`.
    pub fn in_memory(config: &Config, dirs: &Dirs) -> Self {
        Self { in_memory: true, half_done: HalfDone::default(), ..Self::new(config, dirs) }
    }

    /// Reads the settings and the credentials of a store and tells where it is. Sends nothing.
    ///
    /// # Errors
    /// What is wrong with them, with the line to write.
    pub fn check(&self, name: &str) -> Result<String, CapabilityError> {
        Ok(self.open(name)?.place)
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
    pub fn needs_of(&self, name: &str) -> SandboxNeeds {
        match self.settings.get(name) {
            Some((settings, directory)) if !self.in_memory => {
                let reach = open::sandbox_needs(settings, directory);
                match self.half_done.directory() {
                    Some(records) => reach.and(SandboxNeeds::directory(records)),
                    None => reach,
                }
            }
            _ => SandboxNeeds::default(),
        }
    }

    /// Which of `keys` exist, in their order. One that was seen a short while ago is not asked for
    /// again.
    ///
    /// # Errors
    /// `invalid` keys, or as the store has it.
    pub async fn exists(&self, name: &str, keys: &[String]) -> Result<Vec<bool>, CapabilityError> {
        let open = self.open(name)?;
        let paths: Vec<Path> = keys.iter().map(|key| path(name, key)).collect::<Result<_, _>>()?;
        let forbidden = AtomicBool::new(false);
        let asked = futures_util::stream::iter(paths).map(|path| {
            let (open, forbidden) = (&open, &forbidden);
            async move {
                if self.present.has(name, path.as_ref()) {
                    return Ok(true);
                }
                let exists = exists(open, &path, forbidden).await?;
                if exists {
                    self.present.seen(name, path.as_ref());
                }
                Ok(exists)
            }
        });
        let result = asked.buffered(PARALLEL_REQUESTS).try_collect().await;
        self.noticed(name, result)
    }

    /// The object under `key`, if there is one that may be read.
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
        let result = match contents(&open, &path).await {
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) if Answer::of(&error).is_some_and(|said| said.is_forbidden_object()) => {
                Ok(None)
            }
            Err(error) => Err(explain(&open, "get", key, &error)),
            Ok(object) => read(&open, key, object, max_length).await.map(Some),
        };
        self.noticed(name, result)
    }

    /// Writes one small object.
    ///
    /// # Errors
    /// As [`ObjectStores::put_all`].
    pub async fn put(
        &self,
        name: &str,
        key: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<(), CapabilityError> {
        let (key, content_type) = (key.to_owned(), content_type.to_owned());
        self.put_all(name, vec![Object { key, content_type, body }]).await
    }

    /// Writes small objects, many at a time and in no order. The first failure ends it; any of the
    /// others may have been written.
    ///
    /// # Errors
    /// An `invalid` key or content type, or as the store has it.
    pub async fn put_all(&self, name: &str, objects: Vec<Object>) -> Result<(), CapabilityError> {
        let open = self.open(name)?;
        let checked: Vec<(Path, Object, ObjectAttributes)> = objects
            .into_iter()
            .map(|object| {
                let attributes = ObjectAttributes::content_type(object.content_type.clone());
                attributes.check()?;
                Ok((path(name, &object.key)?, object, attributes))
            })
            .collect::<Result<_, CapabilityError>>()?;
        let writing = futures_util::stream::iter(checked).map(|(path, object, attributes)| {
            let open = &open;
            async move {
                let Object { key, body, .. } = object;
                let stored = once::put(open, &path, body.into(), &attributes, false).await;
                stored.map_err(|error| explain(open, "put", &key, &error))?;
                self.present.seen(name, path.as_ref());
                Ok(())
            }
        });
        let result = writing.buffer_unordered(PARALLEL_REQUESTS).try_collect().await;
        self.noticed(name, result)
    }

    /// Writes one small object with attributes, and replaces one under this key.
    ///
    /// # Errors
    /// An `invalid` key or attribute, or as the store has it.
    pub async fn put_with(
        &self,
        name: &str,
        key: &str,
        body: Vec<u8>,
        attributes: &ObjectAttributes,
    ) -> Result<(), CapabilityError> {
        let open = self.open(name)?;
        attributes.check()?;
        let path = path(name, key)?;
        let stored = once::put(&open, &path, body.into(), attributes, false).await;
        let result = stored.map_err(|error| explain(&open, "put", key, &error));
        self.noticed(name, result)?;
        self.present.seen(name, path.as_ref());
        Ok(())
    }

    /// Writes one small object, unless there is one under this key. With a server that ignores or
    /// refuses conditions, another writer may come between the look-up and the write; then the last
    /// one counts.
    ///
    /// # Errors
    /// An `invalid` key or attribute, or as the store has it.
    pub async fn put_new(
        &self,
        name: &str,
        key: &str,
        body: Vec<u8>,
        attributes: &ObjectAttributes,
    ) -> Result<Creation, CapabilityError> {
        let open = self.open(name)?;
        attributes.check()?;
        let path = path(name, key)?;
        let created = once::create(&open, &path, body.into(), attributes, Name::Free).await;
        let result = created.map_err(|error| explain(&open, "put", key, &error));
        let creation = self.noticed(name, result)?;
        self.present.seen(name, path.as_ref());
        Ok(creation)
    }

    /// Returns how often the store `name` has asked for fewer requests (429, 503) since it was
    /// opened.
    pub fn throttled(&self, name: &str) -> u64 {
        let stores = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        stores.get(name).map_or(0, |open| open.pace.throttled())
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
        let gather = async {
            while keys.len() < max && bytes <= most {
                let key = match objects.next().await {
                    None => break,
                    Some(Ok(object)) => object.location.to_string(),
                    Some(Err(error)) => return Err(explain(&open, "list", prefix, &error)),
                };
                PAGES.with(|pages| pages.set(0));
                if key.starts_with(prefix) {
                    bytes += key.len() as u64;
                    keys.push(key);
                }
            }
            Ok(())
        };
        // A server may go on for ever.
        let gather = PAGES.scope(Cell::new(0), gather);
        let result = tokio::time::timeout(LIST_TIME, gather).await.unwrap_or_else(|_| {
            Err(CapabilityError::transient(format!(
                "object store `{name}` ({}): the list of `{prefix}` did not end in {}",
                open.place,
                humantime::format_duration(LIST_TIME)
            )))
        });
        self.noticed(name, result.map(|()| keys))
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

    /// Returns where the store `name` is, for messages and records.
    ///
    /// # Errors
    /// As [`ObjectStores::check`].
    pub fn place(&self, name: &str) -> Result<String, CapabilityError> {
        self.open(name).map(|open| open.place)
    }

    /// Returns whether the store `name` keeps headers such as `Content-Encoding` with an object.
    ///
    /// # Errors
    /// As [`ObjectStores::check`].
    pub fn keeps_headers(&self, name: &str) -> Result<bool, CapabilityError> {
        self.open(name).map(|open| open.keeps != open::Keeps::Nothing)
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
        if result.as_ref().is_err_and(|error| error.kind == ErrorKind::Refused)
            && !self.in_memory
            && !held()
        {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        result
    }
}

/// What a store's answer means that is in the text of an error. For the fuzz targets.
pub fn explain_text(text: &str) -> CapabilityError {
    let source = std::io::Error::other(text.to_owned()).into();
    let error = ::object_store::Error::Generic { store: "S3", source };
    error::explain(&open::in_memory("cache"), "read", "key", &error)
}

#[cfg(test)]
mod tests;
