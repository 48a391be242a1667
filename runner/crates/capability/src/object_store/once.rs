//! Writes that never replace an object.
//!
//! A server that honours `If-None-Match: *` decides itself. One that ignores the condition, or may
//! ignore it, is asked first whether the object exists; another writer may then come between, which
//! is harmless for objects whose name determines their bytes. Which kind a server is, is found out
//! with the first small NAR: it is written twice.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use ::object_store::path::Path;
use ::object_store::{Error, ObjectStoreExt as _, PutMode, PutPayload, Result};
use bytes::Bytes;
use rustix::io::Errno;

use super::attributes::ObjectAttributes;
use super::connector::CREATE_ONLY;
use super::error::{Answer, chain};
use super::open::Open;

/// The largest object that is written twice to find out what a server does.
const MAX_TRIAL: usize = 256 << 10;

/// The result of a write that must not replace anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// The object was written.
    Created,
    /// There was an object under this name, which is unchanged.
    Exists,
}

/// What a server does with the condition that an object must not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Condition {
    Unknown,
    Honoured,
    Ignored,
    /// The server fails requests with the condition.
    Refused,
}

/// What is known about the conditions of one store.
#[derive(Debug)]
pub(super) struct Conditions {
    put: AtomicU8,
    /// Whether a call tries out now what the server does.
    in_trial: AtomicBool,
    /// Whether the end of a multipart upload must not have the condition.
    complete_refused: AtomicBool,
}

impl Conditions {
    pub(super) fn new(put: Condition) -> Self {
        Self {
            put: AtomicU8::new(put as u8),
            in_trial: AtomicBool::new(false),
            complete_refused: AtomicBool::new(false),
        }
    }

    pub(super) fn put(&self) -> Condition {
        let known = [Condition::Honoured, Condition::Ignored, Condition::Refused];
        let now = self.put.load(Ordering::Relaxed);
        known.into_iter().find(|known| *known as u8 == now).unwrap_or(Condition::Unknown)
    }

    pub(super) fn set(&self, open: &Open, condition: Condition) {
        self.put.store(condition as u8, Ordering::Relaxed);
        if condition != Condition::Honoured {
            let (name, place) = (&open.name, &open.place);
            tracing::debug!(name, place, ?condition, "the server has no conditional writes");
        }
    }
}

/// Whether the bytes of an object are determined by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    DeterminesBytes,
    Free,
}

/// Returns whether there is an object. An answer that it may not be read counts as none, as S3
/// gives it for a missing object to those who may not list the bucket.
pub(super) async fn is_there(open: &Open, path: &Path) -> Result<bool> {
    match open.store.head(path).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) if Answer::of(&error).is_some_and(|said| said.is_forbidden_object()) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Writes an object unless there is one under this name.
pub(super) async fn create(
    open: &Open,
    path: &Path,
    body: Bytes,
    attributes: &ObjectAttributes,
    name: Name,
) -> Result<Creation> {
    let known = open.conditions.put();
    if known != Condition::Honoured && is_there(open, path).await? {
        return Ok(Creation::Exists);
    }
    if known == Condition::Refused {
        put(open, path, body, attributes, false).await?;
        return Ok(Creation::Created);
    }
    match put(open, path, body.clone(), attributes, true).await {
        Ok(()) => {
            if name == Name::DeterminesBytes && body.len() <= MAX_TRIAL {
                try_out(open, path, body, attributes).await;
            }
            Ok(Creation::Created)
        }
        Err(error) if is_conflict(&error) => {
            // S3 also answers so while another write of the object is under way.
            if is_there(open, path).await? {
                return Ok(Creation::Exists);
            }
            Err(error)
        }
        Err(error) if is_refusal(open, &error) => {
            put(open, path, body, attributes, false).await?;
            open.conditions.set(open, Condition::Refused);
            Ok(Creation::Created)
        }
        Err(error) => Err(error),
    }
}

/// Learns what the server does with the condition, unless that is known, by writing an object again
/// that was just written.
async fn try_out(open: &Open, path: &Path, body: Bytes, attributes: &ObjectAttributes) {
    let conditions = &open.conditions;
    if conditions.put() != Condition::Unknown || conditions.in_trial.swap(true, Ordering::Relaxed) {
        return;
    }
    match put(open, path, body, attributes, true).await {
        Ok(()) => conditions.set(open, Condition::Ignored),
        Err(error) if is_conflict(&error) => conditions.set(open, Condition::Honoured),
        // The object is written. Another one is tried with.
        Err(_) => conditions.in_trial.store(false, Ordering::Relaxed),
    }
}

/// Writes an object, and replaces one under this name unless it must be new.
pub(super) async fn put(
    open: &Open,
    path: &Path,
    body: Bytes,
    attributes: &ObjectAttributes,
    create_only: bool,
) -> Result<()> {
    let by_header = create_only && open.http.is_some();
    let mode = if create_only && !by_header { PutMode::Create } else { PutMode::Overwrite };
    let options = attributes.put_options(open, mode);
    let written = open.store.put_opts(path, PutPayload::from(body), options);
    if by_header {
        CREATE_ONLY.scope((), written).await?
    } else {
        written.await?
    };
    Ok(())
}

/// Ends a multipart upload, unless there is an object under its name. `complete` sends the request.
/// Only S3 has conditions for it; with other services, the caller has looked before.
pub(super) async fn complete<F: Future<Output = Result<()>>>(
    open: &Open,
    path: &Path,
    is_s3: bool,
    complete: impl Fn() -> F,
) -> Result<Creation> {
    let refused = &open.conditions.complete_refused;
    if !is_s3 || refused.load(Ordering::Relaxed) {
        complete().await?;
        return Ok(Creation::Created);
    }
    match CREATE_ONLY.scope((), complete()).await {
        Ok(()) => Ok(Creation::Created),
        Err(error) if is_conflict(&error) && is_there(open, path).await? => Ok(Creation::Exists),
        Err(error) if is_refusal(open, &error) => {
            complete().await?;
            refused.store(true, Ordering::Relaxed);
            Ok(Creation::Created)
        }
        Err(error) => Err(error),
    }
}

/// Gives the file `from` its name, unless there is one.
pub(super) async fn rename(open: &Open, from: &Path, to: &Path) -> Result<Creation> {
    match open.store.rename_if_not_exists(from, to).await {
        Ok(()) => Ok(Creation::Created),
        Err(error) if is_conflict(&error) => {
            open.store.delete(from).await?;
            Ok(Creation::Exists)
        }
        Err(error) if is_refusal(open, &error) => {
            if is_there(open, to).await? {
                open.store.delete(from).await?;
                return Ok(Creation::Exists);
            }
            open.store.rename(from, to).await?;
            Ok(Creation::Created)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether a condition was not met.
pub(super) fn is_conflict(error: &Error) -> bool {
    let is_kind = matches!(
        error,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }
    );
    is_kind || Answer::of(error).is_some_and(|answer| answer.status == 412)
}

/// Returns whether a server does not know conditions of writes, or a file system has no hard links.
pub(super) fn is_refusal(open: &Open, error: &Error) -> bool {
    if open.directory.is_some() {
        let codes = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS].map(Errno::raw_os_error);
        return chain(error)
            .filter_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error())
            .any(|code| codes.contains(&code));
    }
    let Some(answer) = Answer::of(error) else { return false };
    let code = answer.code.as_deref().unwrap_or_default();
    answer.status == 501
        || answer.status == 400
            && matches!(code, "NotImplemented" | "InvalidArgument" | "InvalidRequest")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Error {
        let source = std::io::Error::other(text.to_owned()).into();
        Error::Generic { store: "S3", source }
    }

    #[test]
    fn a_server_without_conditions_is_told_from_other_errors() {
        let code = |status: u16, code: &str| {
            said(&format!("status code: {status} X: <Error><Code>{code}</Code></Error>"))
        };
        let open = super::super::open::in_memory("c");
        for (status, word, refusal, conflict) in [
            (501, "NotImplemented", true, false),
            (400, "InvalidArgument", true, false),
            (400, "ExpiredToken", false, false),
            (403, "AccessDenied", false, false),
            (412, "PreconditionFailed", false, true),
            (503, "SlowDown", false, false),
        ] {
            let error = code(status, word);
            assert_eq!(
                (is_refusal(&open, &error), is_conflict(&error)),
                (refusal, conflict),
                "{word}"
            );
        }
    }
}
