//! Finds damage in a cache: narinfos that Nix refuses or that promise what is not there.
//!
//! Each narinfo is read once. Whether NARs and references are present is known from the list of the
//! cache, so there is one request for each narinfo and one for each 1,000 objects. What the list
//! does not have is asked for before it is reported, because it may have been uploaded meanwhile.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookrun_nix::narinfo::{Narinfo, PublicKeys};
use serde::{Deserialize, Serialize};

use crate::content::{self, Content};
use crate::inventory::{HashPart, Listing};
use crate::trust::{self, Trust};
use crate::{Cache, CacheError};

/// A kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// The narinfo cannot be parsed.
    MalformedNarinfo,
    /// The narinfo is of another path than its key says.
    WrongPath,
    /// The URL does not name an object of the cache.
    ForeignUrl,
    /// It has no signature.
    Unsigned,
    /// Only keys signed it that are not trusted.
    ForeignSignature,
    /// A signature by a trusted key is not valid.
    WrongSignature,
    /// The NAR does not exist.
    NarMissing,
    /// The stored bytes of the NAR are not those of the narinfo.
    WrongFile,
    /// The NAR in the object is not that of the narinfo.
    WrongNar,
    /// A path that the path refers to is absent.
    ReferenceMissing,
}

impl Damage {
    /// Returns the words for users.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedNarinfo => "malformed narinfo",
            Self::WrongPath => "narinfo of another path",
            Self::ForeignUrl => "URL outside the cache",
            Self::Unsigned => "no signature",
            Self::ForeignSignature => "no trusted signature",
            Self::WrongSignature => "wrong signature",
            Self::NarMissing => "NAR missing",
            Self::WrongFile => "wrong file",
            Self::WrongNar => "wrong NAR",
            Self::ReferenceMissing => "reference missing",
        }
    }

    /// Returns whether the NAR has to be uploaded again.
    pub fn is_of_nar(self) -> bool {
        matches!(self, Self::ForeignUrl | Self::NarMissing | Self::WrongFile | Self::WrongNar)
    }

    /// Returns whether the narinfo itself cannot be used.
    pub fn is_of_narinfo(self) -> bool {
        matches!(self, Self::MalformedNarinfo | Self::WrongPath)
    }

    /// Returns whether a signature is the problem.
    pub fn is_of_signature(self) -> bool {
        matches!(self, Self::Unsigned | Self::ForeignSignature | Self::WrongSignature)
    }
}

/// Something that is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// The hash part of the path, which is the key of the narinfo.
    pub hash: String,
    /// The store path, or the hash part if the narinfo does not say it.
    pub path: String,
    /// The kind.
    pub damage: Damage,
    /// The value that is wrong.
    pub detail: String,
}

/// Settings of a verification.
pub struct Options<'a> {
    /// The trusted keys. Without keys, signatures are not verified.
    pub keys: &'a PublicKeys,
    /// Whether NARs are read.
    pub content: bool,
    /// Narinfos that are checked at the same time.
    pub parallel: usize,
}

/// The result for one narinfo.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The compression, if the content could not be checked for it.
    pub unchecked: Option<String>,
    /// The bytes that were read of the NAR.
    pub bytes: u64,
    /// The names of the references.
    pub references: Vec<String>,
}

/// Verifies the narinfos of a listing after `after`, in order. `each` gets every result.
///
/// # Errors
/// As the store has it. A store that does not answer is not damage.
pub async fn listed(
    cache: &Cache,
    listing: &Listing,
    after: Option<HashPart>,
    options: &Options<'_>,
    each: &mut dyn FnMut(HashPart, Checked) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let entries = listing.narinfos.iter().map(|entry| entry.hash);
    let rest: Vec<HashPart> =
        entries.filter(|hash| after.is_none_or(|after| *hash > after)).collect();
    let mut checking = stream::iter(rest)
        .map(|hash| async move {
            let checked = check(cache, hash, None, Some(listing), options).await?;
            Ok::<_, CacheError>((hash, checked))
        })
        .buffered(options.parallel);
    while let Some((hash, checked)) = checking.try_next().await? {
        each(hash, checked)?;
    }
    Ok(())
}

/// Verifies the closure of paths, also in a cache that cannot be listed.
///
/// # Errors
/// As [`listed`].
pub async fn closure(
    cache: &Cache,
    paths: &[String],
    options: &Options<'_>,
    each: &mut dyn FnMut(HashPart, Checked) -> Result<(), CacheError>,
) -> Result<(), CacheError> {
    let names = paths.iter().map(|path| path.rsplit('/').next().unwrap_or(path).to_owned());
    let mut seen = HashSet::new();
    let mut wave: Vec<(HashPart, String)> = Vec::new();
    let mut add = |names: &mut dyn Iterator<Item = String>, wave: &mut Vec<_>| {
        for name in names {
            if let Some(hash) = HashPart::of(&name).filter(|hash| seen.insert(*hash)) {
                wave.push((hash, name));
            }
        }
    };
    add(&mut names.into_iter(), &mut wave);
    while !wave.is_empty() {
        let mut checking = stream::iter(std::mem::take(&mut wave))
            .map(|(hash, name)| async move {
                let checked = check(cache, hash, Some(&name), None, options).await?;
                Ok::<_, CacheError>((hash, checked))
            })
            .buffered(options.parallel);
        while let Some((hash, mut checked)) = checking.try_next().await? {
            let references = std::mem::take(&mut checked.references);
            add(&mut references.into_iter(), &mut wave);
            each(hash, checked)?;
        }
    }
    Ok(())
}

/// Checks one narinfo. `name` is the name of a path that has to be there; none for a narinfo of a
/// list, which may have been deleted since.
async fn check(
    cache: &Cache,
    hash: HashPart,
    name: Option<&str>,
    listing: Option<&Listing>,
    options: &Options<'_>,
) -> Result<Checked, CacheError> {
    let mut checked = Checked::default();
    let known_path = name.map(|name| format!("{}/{name}", cache.store_dir()));
    let mut path = known_path.clone().unwrap_or_else(|| hash.as_str().to_owned());
    let mut found = |path: &str, damage, detail: String| {
        let path = path.to_owned();
        checked.findings.push(Finding { hash: hash.as_str().to_owned(), path, damage, detail });
    };
    let Some(stored) = cache.narinfo(hash.as_str()).await? else {
        if name.is_some() {
            found(&path, Damage::ReferenceMissing, "the path is not in the cache".to_owned());
        }
        return Ok(checked);
    };
    let narinfo = match stored.narinfo {
        Ok(narinfo) => narinfo,
        Err(error) => {
            found(&path, Damage::MalformedNarinfo, error.to_string());
            return Ok(checked);
        }
    };
    if narinfo.hash_part() != hash.as_str() {
        found(&path, Damage::WrongPath, format!("it is of {}", narinfo.store_path()));
        return Ok(checked);
    }
    path = narinfo.store_path();
    check_signatures(&narinfo, options.keys, &mut |damage, detail| found(&path, damage, detail));

    if let Some(listing) = listing {
        for name in narinfo.references() {
            let Some(reference) = HashPart::of(&name) else { continue };
            if listing.narinfo(reference).is_none()
                && cache.bucket().head(&hookrun_nix::narinfo::key_of(&name)).await?.is_none()
            {
                found(&path, Damage::ReferenceMissing, name);
            }
        }
    }
    let key = match narinfo.nar_key() {
        Ok(key) => key.to_owned(),
        Err(error) => {
            found(&path, Damage::ForeignUrl, error.to_string());
            return Ok(checked);
        }
    };
    let listed = listing.and_then(|listing| {
        let index = listing.object(&key)?;
        listing.objects.get(index).map(|object| object.size)
    });
    let size = match listed {
        Some(size) => Some(size),
        None if options.content => None,
        None => cache.bucket().head(&key).await?.map(|found| found.size),
    };
    let missing = |key: &str| format!("{key} does not exist");
    match (size, options.content) {
        (None, false) => found(&path, Damage::NarMissing, missing(&key)),
        (Some(size), false) => {
            if let Some(expected) = narinfo.file_size().filter(|expected| *expected != size) {
                let detail = format!("{key} has {size} bytes, and FileSize is {expected}");
                found(&path, Damage::WrongFile, detail);
            }
        }
        (_, true) => match cache.bucket().stream(&key).await? {
            None => found(&path, Damage::NarMissing, missing(&key)),
            Some(object) => {
                let size = object.size;
                match content::check(&narinfo, object).await? {
                    Content::Right => {}
                    Content::Unchecked(compression) => checked.unchecked = Some(compression),
                    Content::WrongFile(what) => {
                        found(&path, Damage::WrongFile, format!("{key}: {what}"));
                    }
                    Content::WrongNar(what) => {
                        found(&path, Damage::WrongNar, format!("{key}: {what}"));
                    }
                }
                checked.bytes = size;
            }
        },
    }
    checked.references = narinfo.references().collect();
    Ok(checked)
}

fn check_signatures(narinfo: &Narinfo, keys: &PublicKeys, found: &mut dyn FnMut(Damage, String)) {
    if keys.is_empty() {
        return;
    }
    let (trust, wrong) = trust::of(narinfo, keys);
    match trust {
        Trust::Unsigned => found(Damage::Unsigned, "it has no signature".to_owned()),
        Trust::Foreign(names) if wrong.is_empty() => {
            found(Damage::ForeignSignature, format!("signed only by {}", names.join(", ")));
        }
        Trust::Trusted | Trust::Foreign(_) => {}
    }
    for name in wrong {
        found(Damage::WrongSignature, format!("the signature of {name} is not valid"));
    }
}
