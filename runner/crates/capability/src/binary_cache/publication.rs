//! Looks up and writes the narinfos of paths, which make them visible to clients.
//!
//! A narinfo that exists is merged with the new one: it gets the signatures that it lacks, and
//! keeps its own object and every line that is unknown here. It is not written if nothing changes.
//! If it has other contents, which happens when a build is not deterministic, it stays as it is:
//! its object and its signatures belong together.

use super::condemned::Standing;
use super::graph::Found;
use super::push::{Context, Trouble, now};
use crate::CapabilityError;
use crate::object_store::{Creation, ObjectAttributes, StoredNar};
use hookrun_nix::database::PathInfo;
use hookrun_nix::narinfo::{self, NarObject, Narinfo, NarinfoError, hash_part};

/// What the cache has of a path.
#[derive(Debug, Clone)]
pub(super) enum Existing {
    /// A valid narinfo.
    Narinfo(Box<Narinfo>),
    /// A narinfo with other contents.
    Different,
    /// Something that clients cannot use.
    Unusable,
    Nothing,
}

/// The result of writing a narinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It is new.
    New,
    /// An existing one was changed.
    Merged,
    /// Another push has written the same meanwhile.
    Present,
    /// Another push has written one with other contents meanwhile.
    Different,
}

/// Looks up a path in the cache.
///
/// # Errors
/// As the store has it, or the narinfo is longer than Nix accepts.
pub(super) async fn look_up(
    context: &Context,
    info: &PathInfo,
) -> Result<(Found, Existing), CapabilityError> {
    let existing = existing(context, info).await?;
    let found = match &existing {
        Existing::Nothing | Existing::Unusable => Found::Absent,
        // It is about to be removed: NAR and narinfo are written as if it were absent.
        Existing::Narinfo(_) if context.is_condemned(&info.path) => Found::Absent,
        Existing::Different => Found::Present,
        Existing::Narinfo(stored) => {
            let merged = stored.merge(&signed(context, info, &object_of(stored))?);
            match merged {
                Ok(merged) if merged == **stored => Found::Present,
                Ok(_) => Found::Incomplete,
                // Found above already.
                Err(_) => Found::Present,
            }
        }
    };
    Ok((found, existing))
}

/// Returns whether the cache has a path that is not pushed.
///
/// # Errors
/// As the store has it.
pub(super) async fn has(context: &Context, path: &str) -> Result<bool, CapabilityError> {
    if context.is_condemned(path) {
        return Ok(false);
    }
    let stores = context.services.object_stores();
    let keys = [narinfo::key_of(path)];
    let found = stores.exists(&context.push.store, &keys).await?;
    Ok(found.first() == Some(&true))
}

/// Writes the narinfo of a path: a new one if its NAR is `stored` with this compression, else the
/// existing one with more signatures.
///
/// # Errors
/// As the store has it, or the path cannot be signed.
pub(super) async fn publish(
    context: &Context,
    info: &PathInfo,
    mut existing: Existing,
    stored: Option<(&StoredNar, &str)>,
) -> Result<Published, Trouble> {
    let key = narinfo::key_of(&info.path);
    let flight = context.caches().publications.of(context.name([key.as_str()]));
    let _flight = flight.lock().await;
    let presence = &context.caches().presence;
    let name = context.present_name(&info.path);
    let is_new = matches!(existing, Existing::Nothing) && !context.is_condemned(&info.path);
    if is_new && presence.has(context.place(), &name) {
        // Another push of this process has written it meanwhile.
        return Ok(Published::Present);
    }
    let object = stored.map(|(stored, compression)| NarObject {
        url: stored.key.clone(),
        compression: compression.to_owned(),
        file_hash: Some(stored.written.file_hash.clone()),
        file_size: Some(stored.written.file_size),
    });
    let attributes = ObjectAttributes::content_type(narinfo::CONTENT_TYPE);
    let stores = context.services.object_stores();
    let condemned = context.condemned().await?;
    let sweeping = |standing| match standing {
        Standing::Sweeping { until } => Some(until),
        Standing::Free | Standing::Condemned => None,
    };
    let mut is_condemned = context.is_condemned(&info.path);
    loop {
        let (narinfo, is_new, published) = match (&existing, &object) {
            (Existing::Different, _) => return Ok(Published::Different),
            (Existing::Narinfo(narinfo), Some(object)) if is_condemned => {
                let merged = narinfo.merge(&signed(context, info, object)?);
                let renewed = merged.and_then(|merged| merged.with_object(object));
                (renewed.map_err(|error| malformed(info, &error))?, false, Published::New)
            }
            (Existing::Narinfo(narinfo), _) => {
                let merged = narinfo.merge(&signed(context, info, &object_of(narinfo))?);
                let merged = merged.map_err(|error| malformed(info, &error))?;
                if merged == **narinfo {
                    return Ok(Published::Present);
                }
                (merged, false, Published::Merged)
            }
            (Existing::Nothing, Some(object)) => {
                (signed(context, info, object)?, true, Published::New)
            }
            (Existing::Unusable, Some(object)) => {
                (signed(context, info, object)?, false, Published::New)
            }
            (Existing::Nothing | Existing::Unusable, None) => {
                let error = CapabilityError::transient(format!(
                    "the narinfo of {} was removed meanwhile",
                    info.path
                ));
                return Err(Trouble::Path(error));
            }
        };
        let standings = [
            (key.as_str(), condemned.narinfo(hash_part(&info.path), now())),
            (narinfo.url(), condemned.object(narinfo.url(), now())),
        ];
        for (key, standing) in standings {
            if let Some(until) = sweeping(standing) {
                return Err(Trouble::swept(key, until));
            }
        }
        // A NAR that was there may have been removed since, if it was condemned then.
        let url = narinfo.url();
        let lists = [&context.condemned, &condemned];
        if lists.iter().any(|list| list.object_since(url).is_some())
            && stores.bucket(&context.push.store)?.head(url).await?.is_none()
        {
            let error = CapabilityError::transient(format!(
                "the NAR of {} was removed meanwhile",
                info.path
            ));
            return Err(Trouble::Path(error));
        }
        let (store, text) = (&context.push.store, narinfo.to_string().into_bytes());
        let creation = if is_new {
            stores.put_new(store, &key, text, &attributes).await?
        } else {
            stores.put_with(store, &key, text, &attributes).await?;
            Creation::Created
        };
        match creation {
            Creation::Created => {
                presence.note(name);
                return Ok(published);
            }
            // Another push was faster.
            Creation::Exists => existing = self::existing(context, info).await?,
        }
        is_condemned = false;
    }
}

async fn existing(context: &Context, info: &PathInfo) -> Result<Existing, CapabilityError> {
    let stores = context.services.object_stores();
    let key = narinfo::key_of(&info.path);
    let Some(text) = stores.get(&context.push.store, &key, narinfo::MAX_SIZE).await? else {
        return Ok(Existing::Nothing);
    };
    Ok(match Narinfo::parse(&context.store_dir, &text) {
        Ok(narinfo) if narinfo.store_path() != info.path => Existing::Different,
        Ok(narinfo) => {
            let new = unsigned(context, info, &object_of(&narinfo))?;
            match narinfo.merge(&new) {
                Err(NarinfoError::Conflict { .. }) => Existing::Different,
                _ => Existing::Narinfo(Box::new(narinfo)),
            }
        }
        // Clients cannot read it either.
        Err(_) => Existing::Unusable,
    })
}

/// Returns the object of a narinfo.
fn object_of(narinfo: &Narinfo) -> NarObject {
    NarObject {
        url: narinfo.url().to_owned(),
        compression: narinfo.compression().to_owned(),
        file_hash: narinfo.file_hash(),
        file_size: narinfo.file_size(),
    }
}

fn unsigned(
    context: &Context,
    info: &PathInfo,
    object: &NarObject,
) -> Result<Narinfo, CapabilityError> {
    Narinfo::new(&context.store_dir, info, object).map_err(|error| malformed(info, &error))
}

/// Returns the narinfo with the signatures in Nix's database and those of the keys of the push.
fn signed(
    context: &Context,
    info: &PathInfo,
    object: &NarObject,
) -> Result<Narinfo, CapabilityError> {
    let mut narinfo = unsigned(context, info, object)?;
    let keys = &context.push.settings.keys;
    // A new signature replaces an old one by the same key name, which may be of a former key.
    let is_ours = |signature: &&String| {
        let name = signature.split_once(':').map(|(name, _)| name);
        keys.iter().any(|key| Some(key.as_str()) == name)
    };
    let others = info.signatures.iter().filter(|signature| !is_ours(signature)).cloned();
    let ours =
        keys.iter().map(|key| context.services.signing_keys().sign(key, &context.store_dir, info));
    for signature in others.map(Ok).chain(ours) {
        narinfo = narinfo.with_signature(&signature?).map_err(|error| malformed(info, &error))?;
    }
    Ok(narinfo)
}

fn malformed(info: &PathInfo, error: &NarinfoError) -> CapabilityError {
    CapabilityError::permanent(format!(
        "{} has no valid narinfo ({error}); run `nix-store --verify`",
        info.path
    ))
}
