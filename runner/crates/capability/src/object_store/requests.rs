//! Single requests to a store, and what plugins may write in them.

use std::sync::atomic::{AtomicBool, Ordering};

use ::object_store::path::Path;
use ::object_store::{Error, GetOptions, GetResult, ObjectStoreExt as _};
use futures_util::StreamExt as _;

use super::connector::Contents;
use super::error::{Answer, explain};
use super::open::Open;
use crate::CapabilityError;

/// Longest key, in bytes: that of S3 (its user guide, "Naming Amazon S3 objects"); Azure and Google
/// Cloud have the same.
const MAX_KEY: usize = 1024;

/// Returns whether the object is there. `forbidden`: this service is known to answer for an object
/// that is not there that it may not be read.
pub(super) async fn exists(
    open: &Open,
    path: &Path,
    forbidden: &AtomicBool,
) -> Result<bool, CapabilityError> {
    let error = match open.store.head(path).await {
        Ok(_) => return Ok(true),
        Err(Error::NotFound { .. }) => return Ok(false),
        Err(error) => error,
    };
    let answer = Answer::of(&error).filter(|answer| (300..500).contains(&answer.status));
    let Some(answer) = answer else {
        return Err(explain(open, "look for", path.as_ref(), &error));
    };
    if answer.is_forbidden_object() && forbidden.load(Ordering::Relaxed) {
        return Ok(false);
    }
    // The answer to a HEAD has no body, and so no code; that to a GET has.
    match contents(open, path).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) if Answer::of(&error).is_some_and(|said| said.is_forbidden_object()) => {
            forbidden.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(error) => Err(explain(open, "look for", path.as_ref(), &error)),
    }
}

/// Requests the contents of an object.
pub(super) async fn contents(open: &Open, path: &Path) -> ::object_store::Result<GetResult> {
    let mut options = GetOptions::default();
    options.extensions.insert(Contents);
    open.store.get_opts(path, options).await
}

/// Returns the body of an object, if it is not too long. The size that the service states is not
/// trusted.
pub(super) async fn read(
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
pub(super) fn path(name: &str, key: &str) -> Result<Path, CapabilityError> {
    if key.len() > MAX_KEY {
        return Err(CapabilityError::invalid(format!(
            "object store `{name}`: a key of {} bytes; at most {MAX_KEY} are allowed",
            key.len()
        )));
    }
    Path::parse(key).ok().filter(|path| !path.as_ref().is_empty() && path.as_ref() == key).ok_or_else(|| {
        let shown = key.escape_debug();
        CapabilityError::invalid(format!(
            "object store `{name}`: `{shown}` is not a valid key; write it without `.`, `..`, and leading, doubled or trailing slashes"
        ))
    })
}
