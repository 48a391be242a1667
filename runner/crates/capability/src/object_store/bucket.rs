//! A store as the commands of `hookrun cache` need it: keys with size and time, bounded and
//! streamed reads, writes that create or replace on a condition, and deletion.
//!
//! Plugins have no access to this: their functions are in [`super::ObjectStores`]. No key that
//! comes from a store is used as a path of this machine: the store checks it first
//! ([`super::requests::path`]).

mod incomplete;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path as FilePath;
use std::sync::Arc;

use ::object_store::{
    Attribute, Error, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutPayload, UpdateVersion,
};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use url::Url;

pub use self::incomplete::Incomplete;
use super::ObjectStores;
use super::attributes::ObjectAttributes;
use super::connector::PAGES;
use super::error::{Answer, explain};
use super::once::{self, Creation, Name};
use super::open::{self, Open};
use super::put_nar::PART;
use super::requests::{contents, path, read};
use crate::{CapabilityError, ErrorKind};
use hookrun_config as config;

/// The number of requests to one service at the same time.
pub const PARALLEL_REQUESTS: usize = 32;
/// The parameters of an `s3://` URL of Nix that are settings here.
const NIX_PARAMETERS: [&str; 4] = ["endpoint", "profile", "region", "scheme"];

/// A store that a command works on.
#[derive(Debug, Clone)]
pub struct Bucket {
    open: Open,
}

/// An object of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key below the prefix of the store.
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// The time of the last write as the service has it, in seconds since 1970.
    pub modified: u64,
}

/// A small object with what a conditional write needs.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// The contents.
    pub bytes: Vec<u8>,
    /// The time of the last write as the service has it, in seconds since 1970.
    pub modified: u64,
    /// The `Content-Encoding`, if the service has one.
    pub encoding: Option<String>,
    version: Option<UpdateVersion>,
}

/// A large object that is read in pieces.
pub struct Streamed {
    /// The size that the service states.
    pub size: u64,
    /// The pieces.
    pub pieces: BoxStream<'static, Result<Bytes, CapabilityError>>,
}

impl ObjectStores {
    /// Returns the store `name` of the configuration for a command.
    ///
    /// # Errors
    /// It is not defined, or its settings are wrong.
    pub fn bucket(&self, name: &str) -> Result<Bucket, CapabilityError> {
        Ok(Bucket { open: self.open(name)? })
    }
}

impl Bucket {
    /// Opens the store at a URL, with the parameters that Nix has for `s3://` URLs.
    ///
    /// # Errors
    /// The URL is malformed, or it names a directory that does not exist.
    pub fn at(url: &str) -> Result<Self, CapabilityError> {
        let settings = settings_of_url(url)?;
        let directory = Url::parse(url).ok().filter(|url| url.scheme() == "file");
        if let Some(Ok(directory)) = directory.map(|url| url.to_file_path())
            && !directory.is_dir()
        {
            return Err(CapabilityError::refused(format!(
                "there is no directory {}; check the URL `{url}`",
                directory.display()
            )));
        }
        Ok(Self { open: open::open(url, &settings, FilePath::new(""))? })
    }

    /// Returns an empty store in memory.
    pub fn in_memory(name: &str) -> Self {
        Self { open: open::in_memory(name) }
    }

    /// Returns another store, such as one that a test observes.
    pub fn over(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        Self { open: Open { store, ..open::in_memory(name) } }
    }

    /// Returns where the store is, for messages and for the names of records.
    pub fn place(&self) -> &str {
        &self.open.place
    }

    /// Returns the name of the configuration, or the URL.
    pub fn name(&self) -> &str {
        &self.open.name
    }

    /// Returns whether the store can be listed. Plain HTTP has no request for it.
    pub fn can_list(&self) -> bool {
        self.open.http.is_none()
    }

    /// Calls `each` for every object below `directory`, or for all; returns the number of objects.
    /// Nothing is kept: the memory is one page of the list.
    ///
    /// # Errors
    /// As the store has it.
    pub async fn list(
        &self,
        directory: Option<&str>,
        mut each: impl FnMut(Listed) -> ControlFlow<()>,
    ) -> Result<u64, CapabilityError> {
        let open = &self.open;
        let shown = directory.unwrap_or_default();
        if !self.can_list() {
            return Err(CapabilityError::refused(format!(
                "object store `{}` ({}) cannot be listed; name store paths, or use s3://, gs://, \
                 az:// or file://",
                open.name, open.place
            )));
        }
        let prefix = directory.map(|directory| path(&open.name, directory)).transpose()?;
        let gather = async {
            let mut count = 0;
            let mut objects = open.store.list(prefix.as_ref());
            while let Some(object) = objects.next().await {
                let object = object.map_err(|error| explain(open, "list", shown, &error))?;
                PAGES.with(|pages| pages.set(0));
                count += 1;
                if each(listed(&object)).is_break() {
                    break;
                }
            }
            Ok(count)
        };
        PAGES.scope(Cell::new(0), gather).await
    }

    /// Returns size and time of an object, or none if there is none that may be read.
    ///
    /// # Errors
    /// An `invalid` key, or as the store has it.
    pub async fn head(&self, key: &str) -> Result<Option<Listed>, CapabilityError> {
        let path = path(&self.open.name, key)?;
        match self.open.store.head(&path).await {
            Ok(found) => Ok(Some(listed(&found))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(explain(&self.open, "look for", key, &error)),
        }
    }

    /// Returns a small object, or none if there is none that may be read.
    ///
    /// # Errors
    /// `limit` if it has more than `most` bytes, an `invalid` key, or as the store has it.
    pub async fn get(&self, key: &str, most: u64) -> Result<Option<Fetched>, CapabilityError> {
        let path = path(&self.open.name, key)?;
        let object = match contents(&self.open, &path).await {
            Ok(object) => object,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(explain(&self.open, "get", key, &error)),
        };
        let encoding = object
            .attributes
            .get(&Attribute::ContentEncoding)
            .map(|value| value.as_ref().to_owned());
        let modified = seconds(&object.meta);
        let version = Some(UpdateVersion {
            e_tag: object.meta.e_tag.clone(),
            version: object.meta.version.clone(),
        });
        let bytes = read(&self.open, key, object, most).await?;
        Ok(Some(Fetched { bytes, modified, encoding, version }))
    }

    /// Returns a large object in pieces, or none if there is none that may be read. The caller
    /// bounds what it reads.
    ///
    /// # Errors
    /// An `invalid` key, or as the store has it.
    pub async fn stream(&self, key: &str) -> Result<Option<Streamed>, CapabilityError> {
        let path = path(&self.open.name, key)?;
        let object = match contents(&self.open, &path).await {
            Ok(object) => object,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(explain(&self.open, "get", key, &error)),
        };
        let (open, key, size) = (self.open.clone(), key.to_owned(), object.meta.size);
        let pieces = object.into_stream();
        let pieces = pieces.map_err(move |error| explain(&open, "get", &key, &error)).boxed();
        Ok(Some(Streamed { size, pieces }))
    }

    /// Writes an object unless there is one; returns whether it was written. A service that ignores
    /// the condition is asked first.
    ///
    /// # Errors
    /// An `invalid` key, or as the store has it.
    pub async fn create(
        &self,
        key: &str,
        content_type: &str,
        bytes: Vec<u8>,
    ) -> Result<bool, CapabilityError> {
        if self.head(key).await?.is_some() {
            return Ok(false);
        }
        let path = path(&self.open.name, key)?;
        let attributes = ObjectAttributes::content_type(content_type);
        let created = once::create(&self.open, &path, bytes.into(), &attributes, Name::Free).await;
        let created = created.map_err(|error| explain(&self.open, "put", key, &error))?;
        Ok(created == Creation::Created)
    }

    /// Replaces a small object if it is still what was read; returns whether it was. Where the
    /// service has no condition for that, the object is compared before and after.
    ///
    /// # Errors
    /// An `invalid` key, or as the store has it.
    pub async fn replace(
        &self,
        key: &str,
        content_type: &str,
        old: &Fetched,
        new: Vec<u8>,
    ) -> Result<bool, CapabilityError> {
        let path = path(&self.open.name, key)?;
        let payload = PutPayload::from(new.clone());
        let mode = old.version.clone().map_or(PutMode::Overwrite, PutMode::Update);
        let options = ObjectAttributes::content_type(content_type).put_options(&self.open, mode);
        match self.open.store.put_opts(&path, payload.clone(), options).await {
            Ok(_) => {}
            Err(Error::Precondition { .. } | Error::NotFound { .. }) => return Ok(false),
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                if !self.contains(key, &old.bytes).await? {
                    return Ok(false);
                }
                self.put(key, content_type, payload).await?;
            }
            Err(error) => return Err(explain(&self.open, "put", key, &error)),
        }
        self.contains(key, &new).await
    }

    /// Returns whether the object has these contents.
    async fn contains(&self, key: &str, wanted: &[u8]) -> Result<bool, CapabilityError> {
        match self.get(key, wanted.len() as u64).await {
            Ok(found) => Ok(found.is_some_and(|found| found.bytes == wanted)),
            Err(error) if error.kind == ErrorKind::Limit => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put(
        &self,
        key: &str,
        content_type: &str,
        payload: PutPayload,
    ) -> Result<(), CapabilityError> {
        let path = path(&self.open.name, key)?;
        let attributes = ObjectAttributes::content_type(content_type);
        let options = attributes.put_options(&self.open, PutMode::Overwrite);
        let stored = self.open.store.put_opts(&path, payload, options);
        stored.await.map(drop).map_err(|error| explain(&self.open, "put", key, &error))
    }

    /// Writes an object from pieces. A large one is sent in parts, which are given up if a piece is
    /// an error, so that the object appears whole or not at all.
    ///
    /// # Errors
    /// That of a piece, an `invalid` key, or as the store has it.
    pub async fn put_stream(
        &self,
        key: &str,
        content_type: &str,
        mut pieces: impl futures_util::Stream<Item = Result<Bytes, CapabilityError>> + Unpin,
    ) -> Result<(), CapabilityError> {
        let path = path(&self.open.name, key)?;
        let failed = |error: Error| explain(&self.open, "put", key, &error);
        let mut part = Vec::new();
        let mut upload: Option<Box<dyn MultipartUpload>> = None;
        while let Some(piece) = pieces.next().await {
            let piece = match (piece, &mut upload) {
                (Ok(piece), _) => piece,
                (Err(error), None) => return Err(error),
                (Err(error), Some(upload)) => {
                    give_up(&mut **upload).await;
                    return Err(error);
                }
            };
            part.extend_from_slice(&piece);
            if part.len() < PART {
                continue;
            }
            if upload.is_none() {
                let options =
                    ObjectAttributes::content_type(content_type).multipart_options(&self.open);
                let begun = self.open.store.put_multipart_opts(&path, options).await;
                upload = Some(begun.map_err(failed)?);
            }
            if let Some(upload) = &mut upload
                && let Err(error) = upload.put_part(std::mem::take(&mut part).into()).await
            {
                give_up(&mut **upload).await;
                return Err(failed(error));
            }
        }
        let Some(mut upload) = upload else {
            return self.put(key, content_type, part.into()).await;
        };
        let ended = async {
            if !part.is_empty() {
                upload.put_part(part.into()).await?;
            }
            upload.complete().await
        };
        match ended.await {
            Ok(_) => Ok(()),
            Err(error) => {
                give_up(&mut *upload).await;
                Err(failed(error))
            }
        }
    }

    /// Deletes objects, many in one request where the service has that. An object that does not
    /// exist counts as deleted. Returns the number of deleted objects and the first error.
    pub async fn delete(&self, keys: Vec<String>) -> (u64, Option<CapabilityError>) {
        let (mut paths, mut first_error) = (Vec::with_capacity(keys.len()), None);
        for key in keys {
            match path(&self.open.name, &key) {
                Ok(path) => paths.push(path),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let mut deleted = 0;
        let paths = futures_util::stream::iter(paths).map(Ok).boxed();
        let mut results = self.open.store.delete_stream(paths);
        while let Some(result) = results.next().await {
            match result {
                Ok(_) | Err(Error::NotFound { .. }) => deleted += 1,
                Err(error) => {
                    let error = explain(&self.open, "delete", "objects", &error);
                    first_error = first_error.or(Some(error));
                }
            }
        }
        (deleted, first_error)
    }

    /// Copies an object inside the service, if both stores are in one directory tree or one bucket;
    /// returns false if they are not, and nothing was done.
    ///
    /// # Errors
    /// An `invalid` key, or as the store has it.
    pub async fn copy_from(
        &self,
        source: &Self,
        key: &str,
        as_key: &str,
    ) -> Result<bool, CapabilityError> {
        incomplete::copy_inside(&source.open, &self.open, key, as_key).await
    }

    /// Returns the multipart uploads that were begun and neither completed nor aborted; none if the
    /// service cannot tell.
    ///
    /// # Errors
    /// As the store has it.
    pub async fn incomplete(&self) -> Result<Option<Vec<Incomplete>>, CapabilityError> {
        incomplete::list(&self.open).await
    }

    /// Ends a multipart upload and frees its space.
    ///
    /// # Errors
    /// As the store has it.
    pub async fn abort(&self, upload: &Incomplete) -> Result<(), CapabilityError> {
        incomplete::abort(&self.open, upload).await
    }
}

async fn give_up(upload: &mut dyn MultipartUpload) {
    // What stays is reported by the next `hookrun cache gc`.
    let _aborted = upload.abort().await;
}

/// Returns whether there is no object that may be read: a role without permission to list gets 403
/// for an object that does not exist.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. })
        || Answer::of(error).is_some_and(|answer| answer.is_forbidden_object())
}

fn listed(object: &ObjectMeta) -> Listed {
    Listed { key: object.location.to_string(), size: object.size, modified: seconds(object) }
}

fn seconds(object: &ObjectMeta) -> u64 {
    u64::try_from(object.last_modified.timestamp()).unwrap_or_default()
}

/// Returns the settings of a store at a URL, with the parameters that Nix has for `s3://` URLs.
///
/// # Errors
/// The URL is malformed, or has another parameter.
pub fn settings_of_url(text: &str) -> Result<config::ObjectStore, CapabilityError> {
    let wrong = |what: &str| CapabilityError::refused(format!("`{text}` {what}"));
    let mut url = Url::parse(text).map_err(|error| {
        wrong(&format!(
            "is neither a store of [object-stores] nor a valid URL ({error}); write a name, or for \
             example s3://bucket or file:///directory"
        ))
    })?;
    let mut settings = config::ObjectStore::default();
    let pairs: Vec<(String, String)> =
        url.query_pairs().map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
    if url.scheme() == "s3" {
        let value = |wanted: &str| {
            pairs.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.clone())
        };
        if let Some((key, _)) = pairs.iter().find(|(key, _)| !NIX_PARAMETERS.contains(&&**key)) {
            return Err(wrong(&format!(
                "has the unknown parameter `{key}`; known are {}",
                NIX_PARAMETERS.join(", ")
            )));
        }
        let scheme = value("scheme").unwrap_or_else(|| "https".to_owned());
        settings.endpoint = value("endpoint").map(|endpoint| {
            if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") }
        });
        settings.region = value("region");
        settings.profile = value("profile");
        url.set_query(None);
    }
    settings.url = Some(url.to_string());
    Ok(settings)
}

#[cfg(test)]
mod tests;
