//! Mends what a verification found, from the local store or from another cache.
//!
//! A NAR that is missing or wrong is uploaded under a name that no object has, and the narinfo is
//! pointed to it: an object never gets other bytes. A narinfo is made again only from a source that
//! has the same path; the NAR of another build of the path is not used. Narinfos are written after
//! their NARs and after what they refer to.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hookrun_capability::CapabilityError;
use hookrun_nix::database::PathInfo;
use hookrun_nix::event::NixDirs;
use hookrun_nix::nar::{self, Compression, Expected, Source};
use hookrun_nix::narinfo::{NarObject, Narinfo, SignatureState, key_of};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::copy::{Condemnation, NAR_TYPE, another_key};
use crate::inventory::HashPart;
use crate::sign::{Signer, local_info};
use crate::trust::{self, Trust};
use crate::verify::{Damage, Finding};
use crate::{Cache, CacheError};

/// The compression of NARs that are uploaded again.
const COMPRESSION: Compression = Compression::Zstd(3);
/// The size of a piece between compressor and store in bytes.
const PIECE: usize = 1 << 20;
/// The number of pieces that wait.
const WAITING: usize = 4;
/// The maximum number of absent paths that are uploaded for one path.
const MAX_RESTORED: usize = 100_000;

/// Where contents come from, and what may be done.
pub struct Tools<'a> {
    /// Another cache.
    pub from: Option<&'a Cache>,
    /// Whether the local store is used.
    pub local: bool,
    /// What signs narinfos.
    pub signer: Signer<'a>,
    /// Whether a narinfo that cannot be mended is removed.
    pub remove_broken: bool,
}

/// What was done for a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Repaired {
    /// The store path, or the hash part.
    pub path: String,
    /// Whether nothing is wrong with it any longer, or it was removed.
    pub done: bool,
    /// What was done, or why nothing could be done.
    pub what: String,
}

/// Why a path is not mended.
enum Unmended {
    /// Its contents can be had nowhere.
    Nowhere(String),
    /// It lacks a trusted signature.
    Signature(String),
}

/// A source of one path.
enum Origin {
    Local(Box<PathInfo>),
    Other(Box<Narinfo>),
}

/// Mends everything that was found.
///
/// # Errors
/// As the store has it. What was mended until then stays mended.
pub async fn repair(
    cache: &Cache,
    findings: &[Finding],
    tools: &Tools<'_>,
    each: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Repaired>, CacheError> {
    let mut by_path: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        by_path.entry(&finding.hash).or_default().push(finding);
    }
    let of = by_path.len() as u64;
    let mut repaired = Vec::new();
    let mut list = Condemnation::default();
    for (index, (hash, findings)) in by_path.into_iter().enumerate() {
        let mended = mend(cache, hash, &findings, tools, &mut list).await?;
        let path = findings.first().map_or(hash, |finding| &finding.path).to_owned();
        // A path that only lacks a signature can be used once it is signed.
        let is_broken = findings.iter().any(|finding| !finding.damage.is_of_signature());
        repaired.push(match mended {
            Ok(what) => Repaired { path, done: true, what },
            Err(Unmended::Nowhere(reason)) if tools.remove_broken && is_broken => {
                let key = format!("{hash}{}", hookrun_nix::narinfo::SUFFIX);
                if let (_, Some(error)) = cache.bucket().delete(vec![key]).await {
                    return Err(error.into());
                }
                Repaired { path, done: true, what: format!("narinfo removed: {reason}") }
            }
            Err(Unmended::Signature(what) | Unmended::Nowhere(what)) => {
                Repaired { path, done: false, what }
            }
        });
        each(index as u64 + 1, of);
    }
    Ok(repaired)
}

/// Mends one path; returns what was done, or why it cannot be mended.
async fn mend(
    cache: &Cache,
    hash: &str,
    findings: &[&Finding],
    tools: &Tools<'_>,
    list: &mut Condemnation,
) -> Result<Result<String, Unmended>, CacheError> {
    let has = |is: fn(Damage) -> bool| findings.iter().any(|finding| is(finding.damage));
    let nowhere = |reason| Ok(Err(Unmended::Nowhere(reason)));
    let mut done = Vec::new();
    // What it refers to comes first.
    for finding in findings.iter().filter(|found| found.damage == Damage::ReferenceMissing) {
        // An absent path of a closure is a finding of its own.
        let own = finding.path.rsplit('/').next().unwrap_or_default();
        let name = if HashPart::of(&finding.detail).is_some() { &finding.detail } else { own };
        match restore(cache, name, tools, list).await? {
            // Another path that refers to it was mended before.
            Ok(0) => done.push("the missing path was uploaded".to_owned()),
            Ok(1) => done.push("1 missing path uploaded".to_owned()),
            Ok(count) => done.push(format!("{count} missing paths uploaded")),
            Err(reason) => return nowhere(reason),
        }
    }
    let stored = cache.narinfo(hash).await?.map(|stored| stored.narinfo);
    let mut stored = match stored {
        Some(Ok(narinfo)) if narinfo.hash_part() == hash => Some(narinfo),
        _ => None,
    };
    if has(Damage::is_of_nar) || has(Damage::is_of_narinfo) {
        let name = findings
            .iter()
            .map(|finding| finding.path.as_str())
            .find(|path| path.contains('/'))
            .map(|path| path.rsplit('/').next().unwrap_or(path).to_owned());
        match upload(cache, hash, name.as_deref(), stored.as_ref(), tools).await? {
            Ok((narinfo, from)) => {
                publish(cache, &narinfo, list).await?;
                done.push(format!("uploaded again from {from} as {}", narinfo.url()));
                stored = Some(narinfo);
            }
            Err(reason) => return nowhere(reason),
        }
    }
    if has(Damage::is_of_signature) {
        let Some(narinfo) = stored else { return nowhere("it is gone".to_owned()) };
        match resign(&narinfo, tools)? {
            Ok(new) => {
                let changed = cache.change_narinfo(hash, false, |_| Ok(Some(new.clone()))).await?;
                if changed {
                    done.push("signatures corrected".to_owned());
                }
            }
            Err(reason) => {
                done.push(reason);
                return Ok(Err(Unmended::Signature(done.join(", but "))));
            }
        }
    }
    Ok(Ok(done.join(", ")))
}

/// Removes wrong signatures and adds those of the keys.
fn resign(narinfo: &Narinfo, tools: &Tools<'_>) -> Result<Result<Narinfo, String>, CacheError> {
    let signer = &tools.signer;
    let wrong: HashSet<usize> = narinfo
        .verify(signer.trusted)
        .iter()
        .enumerate()
        .filter(|(_, (_, state))| *state == SignatureState::Wrong)
        .map(|(index, _)| index)
        .collect();
    let signatures: Vec<String> = narinfo.signatures().collect();
    let wrong: HashSet<&str> = signatures
        .iter()
        .enumerate()
        .filter(|(index, _)| wrong.contains(index))
        .map(|(_, text)| text.as_str())
        .collect();
    let narinfo = narinfo
        .retain_signatures(|text| !wrong.contains(text))
        .map_err(CacheError::narinfo(narinfo.store_path()))?;
    if trust::of(&narinfo, signer.trusted).0 == Trust::Trusted {
        return Ok(Ok(narinfo));
    }
    if signer.names.is_empty() {
        return Ok(Err("it has no trusted signature; name a key with --key".to_owned()));
    }
    if !signer.vouches(&narinfo)? {
        return Ok(Err(
            "nothing vouches for it: it has no trusted signature, and the local store does not \
             have the same path; build it here, or check it and use `hookrun cache sign \
             --unverified`"
                .to_owned(),
        ));
    }
    signer.signed(&narinfo).map(Ok)
}

/// Uploads an absent path and everything absent that it refers to; returns the number of paths.
async fn restore(
    cache: &Cache,
    name: &str,
    tools: &Tools<'_>,
    list: &mut Condemnation,
) -> Result<Result<u64, String>, CacheError> {
    let mut narinfos: Vec<Narinfo> = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        let Some(hash) = HashPart::of(&name).filter(|hash| seen.insert(*hash)) else { continue };
        if cache.bucket().head(&key_of(&name)).await?.is_some() {
            continue;
        }
        if narinfos.len() >= MAX_RESTORED {
            return Ok(Err(format!("more than {MAX_RESTORED} paths are missing")));
        }
        match upload(cache, hash.as_str(), Some(&name), None, tools).await? {
            Ok((narinfo, _)) => {
                open.extend(narinfo.references());
                narinfos.push(narinfo);
            }
            Err(reason) => return Ok(Err(format!("{name} is missing: {reason}"))),
        }
    }
    // Every pass writes those that refer to nothing that is still to be written.
    let count = narinfos.len() as u64;
    while !narinfos.is_empty() {
        let waiting: HashSet<String> = narinfos.iter().map(Narinfo::hash_part).collect();
        let is_ready = |narinfo: &Narinfo| {
            let own = narinfo.hash_part();
            narinfo.references().all(|name| {
                let hash = hookrun_nix::narinfo::hash_part(&name);
                hash == own || !waiting.contains(hash)
            })
        };
        let (ready, rest): (Vec<_>, Vec<_>) = narinfos.into_iter().partition(is_ready);
        // Store paths have no cycles, but a hostile cache may claim one.
        if ready.is_empty() {
            return Ok(Err("its references form a cycle".to_owned()));
        }
        for narinfo in ready {
            publish(cache, &narinfo, list).await?;
        }
        narinfos = rest;
    }
    Ok(Ok(count))
}

/// Writes a narinfo in place of what is there.
async fn publish(
    cache: &Cache,
    narinfo: &Narinfo,
    list: &mut Condemnation,
) -> Result<(), CacheError> {
    let revive = list.wait(cache, &narinfo.hash_part(), narinfo.url()).await?;
    // A name that the list has may have been removed since the upload.
    if let Ok(key) = narinfo.nar_key()
        && cache.bucket().head(key).await?.is_none()
    {
        return Err(CacheError::Contended { key: key.to_owned() });
    }
    let mut is_there = false;
    cache
        .change_narinfo(&narinfo.hash_part(), revive, |stored| {
            is_there = true;
            let merged = match &stored.narinfo {
                // Signatures that were added meanwhile, and unknown lines.
                Ok(stored) => narinfo.merge(stored).unwrap_or_else(|_| narinfo.clone()),
                Err(_) => narinfo.clone(),
            };
            Ok(Some(merged))
        })
        .await?;
    if is_there { Ok(()) } else { cache.put_narinfo(narinfo, revive).await }
}

/// Uploads the NAR of a path from a source that has the same path; returns the new narinfo and the
/// words for the source.
async fn upload(
    cache: &Cache,
    hash: &str,
    name: Option<&str>,
    stored: Option<&Narinfo>,
    tools: &Tools<'_>,
) -> Result<Result<(Narinfo, &'static str), String>, CacheError> {
    let (origin, other) = match origin(cache, hash, name, stored, tools).await? {
        Ok(origin) => origin,
        Err(reason) => return Ok(Err(reason)),
    };
    let (object, from) = match &origin {
        Origin::Local(info) => (upload_local(cache, info).await?, "the local store"),
        Origin::Other(narinfo) => match other {
            Some(other) => match upload_from(cache, other, narinfo).await? {
                Ok(object) => (object, "the other cache"),
                Err(reason) => return Ok(Err(reason)),
            },
            None => return Ok(Err("there is no other cache".to_owned())),
        },
    };
    let path = match &origin {
        Origin::Local(info) => info.path.clone(),
        Origin::Other(narinfo) => narinfo.store_path(),
    };
    let failed = || CacheError::narinfo(path.clone());
    let mut narinfo = match (&origin, stored) {
        (_, Some(stored)) => stored.with_object(&object).map_err(failed())?,
        (Origin::Local(info), None) => {
            Narinfo::new(cache.store_dir(), info, &object).map_err(failed())?
        }
        (Origin::Other(narinfo), None) => narinfo.with_object(&object).map_err(failed())?,
    };
    if let Origin::Local(info) = &origin {
        for signature in &info.signatures {
            narinfo = narinfo.with_signature(signature).unwrap_or(narinfo);
        }
    }
    let signer = &tools.signer;
    if !signer.names.is_empty()
        && (matches!(origin, Origin::Local(_)) || signer.vouches(&narinfo)?)
    {
        narinfo = signer.signed(&narinfo)?;
    }
    let is_trusted =
        signer.trusted.is_empty() || trust::of(&narinfo, signer.trusted).0 == Trust::Trusted;
    if stored.is_none() && !is_trusted {
        return Ok(Err("it would have no trusted signature; name a key with --key".to_owned()));
    }
    Ok(Ok((narinfo, from)))
}

/// Finds a source that has the same path.
async fn origin<'a>(
    cache: &Cache,
    hash: &str,
    name: Option<&str>,
    stored: Option<&Narinfo>,
    tools: &Tools<'a>,
) -> Result<Result<(Origin, Option<&'a Cache>), String>, CacheError> {
    let mut reasons = Vec::new();
    let other = match tools.from {
        Some(from) => from.narinfo(hash).await?.and_then(|stored| stored.narinfo.ok()),
        None => None,
    };
    let other = other.filter(|narinfo| narinfo.hash_part() == hash);
    let path = stored
        .map(Narinfo::store_path)
        .or_else(|| name.map(|name| format!("{}/{name}", cache.store_dir())))
        .or_else(|| other.as_ref().map(Narinfo::store_path));
    if tools.local {
        match path.as_deref().map(local_info).transpose()?.flatten() {
            Some(info) if stored.is_none_or(|stored| trust::agrees(stored, &info)) => {
                return Ok(Ok((Origin::Local(Box::new(info)), None)));
            }
            Some(_) => reasons.push("the local store has another build of it"),
            None => reasons.push("it is not valid in the local store"),
        }
    }
    match other {
        Some(narinfo) => {
            let same = stored.is_none_or(|stored| stored.merge(&narinfo).is_ok());
            if same {
                return Ok(Ok((Origin::Other(Box::new(narinfo)), tools.from)));
            }
            reasons.push("the other cache has another build of it");
        }
        None if tools.from.is_some() => reasons.push("the other cache does not have it"),
        None => reasons.push("no other cache is named with --from"),
    }
    Ok(Err(reasons.join(", and ")))
}

/// Uploads the NAR of a valid path of this machine.
async fn upload_local(cache: &Cache, info: &PathInfo) -> Result<NarObject, CacheError> {
    let mut key = format!("nar/{}", COMPRESSION.object_name(&info.nar_hash));
    if cache.bucket().head(&key).await?.is_some() {
        key = another_key(&key);
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let source = Source::Path(NixDirs::from_env().real_path(&info.path));
    let expected = Expected {
        path: info.path.clone(),
        nar_hash: info.nar_hash.clone(),
        nar_size: info.nar_size,
    };
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = PieceWriter { sender: sender.clone(), piece: Vec::new() };
        let written = nar::write(&source, &expected, COMPRESSION, &mut writer);
        let written = written.map_err(|error| CapabilityError::permanent(error.to_string()));
        let written = written.and_then(|written| {
            let sent = writer.send();
            sent.map(|()| written).map_err(|error| CapabilityError::transient(error.to_string()))
        });
        if let Err(error) = &written {
            // An error in place of the last piece, so that nothing is published.
            drop(sender.blocking_send(Err(error.clone())));
        }
        written
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece: Result<Bytes, CapabilityError>| (piece, receiver))
    });
    let stored = cache.bucket().put_stream(&key, NAR_TYPE, pieces.boxed()).await;
    let written = writing
        .await
        .map_err(|error| CacheError::Environment(format!("reading was cut off ({error})")))??;
    stored?;
    Ok(NarObject {
        url: key,
        compression: "zstd".to_owned(),
        file_hash: Some(written.file_hash),
        file_size: Some(written.file_size),
    })
}

/// Copies a NAR from another cache, and checks it on the way.
async fn upload_from(
    cache: &Cache,
    other: &Cache,
    narinfo: &Narinfo,
) -> Result<Result<NarObject, String>, CacheError> {
    let Ok(from) = narinfo.nar_key().map(str::to_owned) else {
        return Ok(Err("the other cache has it at a URL outside the cache".to_owned()));
    };
    // Its contents are checked before anything is published.
    let checked = match other.bucket().stream(&from).await? {
        Some(object) => crate::content::check(narinfo, object).await?,
        None => return Ok(Err("the other cache does not have its NAR".to_owned())),
    };
    if checked != crate::content::Content::Right {
        return Ok(Err("its NAR in the other cache is wrong, too".to_owned()));
    }
    let Some(object) = other.bucket().stream(&from).await? else {
        return Ok(Err("the other cache does not have its NAR".to_owned()));
    };
    let mut key = from.clone();
    if cache.bucket().head(&key).await?.is_some() {
        key = another_key(&key);
    }
    let size = object.size;
    cache.bucket().put_stream(&key, NAR_TYPE, object.pieces).await?;
    // The second read may have had other bytes.
    let copied = match cache.bucket().stream(&key).await? {
        Some(object) => crate::content::check(narinfo, object).await?,
        None => return Ok(Err("the copy of its NAR is gone".to_owned())),
    };
    if copied != crate::content::Content::Right {
        return Ok(Err(format!("its NAR changed while it was copied to {key}")));
    }
    Ok(Ok(NarObject {
        url: key,
        compression: narinfo.compression().to_owned(),
        file_hash: narinfo.file_hash(),
        file_size: Some(size),
    }))
}

/// Sends what is written in pieces.
struct PieceWriter {
    sender: mpsc::Sender<Result<Bytes, CapabilityError>>,
    piece: Vec<u8>,
}

impl PieceWriter {
    fn send(&mut self) -> std::io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        self.sender
            .blocking_send(Ok(piece.into()))
            .map_err(|_| std::io::Error::other("the upload ended early"))
    }
}

impl std::io::Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
