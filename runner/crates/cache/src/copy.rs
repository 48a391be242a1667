//! Copies paths to another cache: NARs first, then narinfos in the order of references, so that a
//! reader of the target never sees a path without what it needs.
//!
//! An object is copied inside the service where both stores are there, and streamed otherwise. A
//! NAR that the target has under the same name with the same size is not copied again; one of
//! another size gets another name, because a name never gets other bytes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookrun_capability::binary_cache::condemned::{REREAD, Standing};
use hookrun_nix::narinfo::{NarObject, Narinfo};
use serde::Serialize;

use crate::inventory::{HashPart, Listing};
use crate::plan::Amount;
use crate::{Cache, CacheError};

/// The content type of a NAR (Nix 2.34 `nix copy --to s3://`).
pub(crate) const NAR_TYPE: &str = "application/x-nix-nar";
/// NARs that are copied at the same time.
const PARALLEL_NARS: usize = 8;
/// How often the end of a sweep is looked for.
const LOOK: Duration = Duration::from_secs(5);

/// The result of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Paths that were copied, with the bytes of their NARs.
    pub copied: Amount,
    /// NARs that were copied inside the service.
    pub server_side: u64,
    /// Paths that the target had.
    pub present: u64,
    /// Paths that cannot be copied, with the reason.
    pub failed: Vec<(String, String)>,
}

/// Copies the closure of paths, or everything if there are none.
///
/// # Errors
/// As the stores have it, or the source lacks a path.
pub async fn copy(
    source: &Cache,
    target: &Cache,
    paths: &[String],
    parallel: usize,
    each: &mut dyn FnMut(u64, u64),
) -> Result<Report, CacheError> {
    let mut report = Report::default();
    let wanted = if paths.is_empty() {
        let listing = Listing::of(source, |_| ()).await?;
        let names =
            listing.narinfos.iter().map(|entry| (entry.hash, entry.hash.as_str().to_owned()));
        read(source, names.collect(), false, parallel, &mut report).await?
    } else {
        let names = paths.iter().filter_map(|path| Some((HashPart::of(path)?, path.clone())));
        read(source, names.collect(), true, parallel, &mut report).await?
    };
    let order = references_first(&wanted);
    let (condemned, _) = target.condemned().await?;
    let of = order.len() as u64;

    // What the target has without being condemned needs no NAR.
    let present: Vec<HashPart> = stream::iter(order.iter().copied())
        .map(|hash| async move {
            let stored = target.narinfo(hash.as_str()).await?;
            Ok::<_, CacheError>(stored.is_some_and(|stored| stored.narinfo.is_ok()).then_some(hash))
        })
        .buffer_unordered(parallel)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await?;
    let present: HashSet<HashPart> = present
        .into_iter()
        .filter(|hash| condemned.narinfo(hash.as_str(), target.now()) == Standing::Free)
        .collect();
    report.present = present.len() as u64;
    let mut done = report.present;
    each(done, of);

    let absent: Vec<HashPart> =
        order.iter().copied().filter(|hash| !present.contains(hash)).collect();
    let mut objects = HashMap::new();
    let wanted = &wanted;
    let mut copying = stream::iter(absent)
        .map(|hash| async move {
            let narinfo = wanted.get(&hash);
            let copied = match narinfo {
                Some(narinfo) => copy_nar(source, target, narinfo).await,
                None => Err(CacheError::Usage("it is gone".to_owned())),
            };
            (hash, copied)
        })
        .buffer_unordered(PARALLEL_NARS);
    while let Some((hash, copied)) = copying.next().await {
        match copied {
            Ok(nar) => {
                report.copied.add(nar.size);
                report.server_side += u64::from(nar.server_side);
                objects.insert(hash, nar);
            }
            Err(error) => {
                let path = wanted.get(&hash).map(Narinfo::store_path).unwrap_or_default();
                report.failed.push((path, error.to_string()));
            }
        }
        done += 1;
        each(done, of);
    }
    drop(copying);

    // A narinfo is written if everything that it refers to is visible.
    let mut visible = present;
    let mut list = Condemnation::default();
    for hash in order {
        let (Some(narinfo), Some(nar)) = (wanted.get(&hash), objects.get(&hash)) else { continue };
        let references = narinfo.references().filter_map(|name| HashPart::of(&name));
        let all_are_visible = references
            .filter(|reference| *reference != hash)
            .all(|reference| visible.contains(&reference));
        if !all_are_visible {
            report.failed.push((
                narinfo.store_path(),
                "a path that it refers to is not in the target".to_owned(),
            ));
            continue;
        }
        let mut nar = nar.clone();
        let revive = loop {
            let revive = list.wait(target, &narinfo.hash_part(), &nar.key).await?;
            // A NAR that was there may have been removed since.
            if nar.is_new || target.bucket().head(&nar.key).await?.is_some() {
                break revive;
            }
            nar = copy_nar(source, target, narinfo).await?;
        };
        let narinfo = match &nar.object {
            Some(object) => {
                narinfo.with_object(object).map_err(CacheError::narinfo(narinfo.store_path()))?
            }
            None => narinfo.clone(),
        };
        target.put_narinfo(&narinfo, revive).await?;
        visible.insert(hash);
    }
    Ok(report)
}

/// The list of condemned objects as an upload has to use it.
#[derive(Debug, Default)]
pub(crate) struct Condemnation {
    list: hookrun_capability::binary_cache::condemned::Condemned,
    /// When it was read, in seconds since 1970.
    read: Option<u64>,
}

impl Condemnation {
    /// Waits until a narinfo of this path, with the NAR at this key, may be written. Returns
    /// whether the path is condemned, so that its narinfo has to be written in any case.
    pub(crate) async fn wait(
        &mut self,
        cache: &Cache,
        hash: &str,
        nar: &str,
    ) -> Result<bool, CacheError> {
        loop {
            let now = cache.now();
            let is_old = |read: u64| now.abs_diff(read) >= REREAD.as_secs();
            if self.read.is_none_or(is_old) {
                self.list = cache.condemned().await?.0;
                self.read = Some(now);
            }
            let path = self.list.narinfo(hash, now);
            let waits = |found| matches!(found, Standing::Sweeping { .. });
            if !waits(path) && !waits(self.list.object(nar, now)) {
                return Ok(path == Standing::Condemned);
            }
            cache.sleep(LOOK).await;
            self.read = None;
        }
    }
}

/// Reads narinfos of the source, with their closure if `follow`.
async fn read(
    source: &Cache,
    mut wave: Vec<(HashPart, String)>,
    follow: bool,
    parallel: usize,
    report: &mut Report,
) -> Result<HashMap<HashPart, Narinfo>, CacheError> {
    let mut found: HashMap<HashPart, Narinfo> = HashMap::new();
    let mut seen: HashSet<HashPart> = wave.iter().map(|(hash, _)| *hash).collect();
    while !wave.is_empty() {
        let mut reading = stream::iter(std::mem::take(&mut wave))
            .map(|(hash, name)| async move {
                let stored = source.narinfo(hash.as_str()).await?;
                Ok::<_, CacheError>((hash, name, stored))
            })
            .buffer_unordered(parallel);
        while let Some((hash, name, stored)) = reading.try_next().await? {
            match stored.map(|stored| stored.narinfo) {
                Some(Ok(narinfo)) if narinfo.hash_part() == hash.as_str() => {
                    if follow {
                        for name in narinfo.references() {
                            if let Some(hash) =
                                HashPart::of(&name).filter(|hash| seen.insert(*hash))
                            {
                                wave.push((hash, name));
                            }
                        }
                    }
                    found.insert(hash, narinfo);
                }
                Some(_) => report.failed.push((name, "its narinfo is not valid".to_owned())),
                None if follow => {
                    report.failed.push((name, "it is not in the source".to_owned()));
                }
                None => {}
            }
        }
    }
    Ok(found)
}

/// Returns the paths so that every path comes after those that it refers to.
fn references_first(wanted: &HashMap<HashPart, Narinfo>) -> Vec<HashPart> {
    let mut hashes: Vec<HashPart> = wanted.keys().copied().collect();
    hashes.sort_unstable();
    let (mut order, mut seen) = (Vec::with_capacity(hashes.len()), HashSet::new());
    for start in hashes {
        let mut stack = vec![(start, false)];
        while let Some((hash, is_done)) = stack.pop() {
            if is_done {
                order.push(hash);
                continue;
            }
            if !seen.insert(hash) {
                continue;
            }
            stack.push((hash, true));
            let references = wanted.get(&hash).into_iter().flat_map(Narinfo::references);
            let references = references.filter_map(|name| HashPart::of(&name));
            stack.extend(
                references.filter(|hash| wanted.contains_key(hash)).map(|hash| (hash, false)),
            );
        }
    }
    order
}

/// A NAR that is in the target.
#[derive(Debug, Clone)]
pub(crate) struct CopiedNar {
    /// Its key in the target.
    pub(crate) key: String,
    /// The values for the narinfo, if they differ from those of the source.
    pub(crate) object: Option<NarObject>,
    size: u64,
    server_side: bool,
    /// Whether it was written under a name that no other object had.
    is_new: bool,
}

/// Copies the NAR of a path.
async fn copy_nar(
    source: &Cache,
    target: &Cache,
    narinfo: &Narinfo,
) -> Result<CopiedNar, CacheError> {
    let key = narinfo.nar_key().map_err(CacheError::narinfo(narinfo.store_path()))?.to_owned();
    let Some(there) = source.bucket().head(&key).await? else {
        return Err(CacheError::Usage(format!("its NAR {key} is not in the source")));
    };
    let size = there.size;
    let mut as_key = key.clone();
    match target.bucket().head(&key).await? {
        Some(found) if found.size == size => {
            return Ok(CopiedNar { key, object: None, size: 0, server_side: false, is_new: false });
        }
        Some(_) => as_key = another_key(&key),
        None => {}
    }
    let object = (as_key != key).then(|| NarObject {
        url: as_key.clone(),
        compression: narinfo.compression().to_owned(),
        file_hash: narinfo.file_hash(),
        file_size: Some(size),
    });
    let server_side = target.bucket().copy_from(source.bucket(), &key, &as_key).await?;
    if !server_side {
        let Some(streamed) = source.bucket().stream(&key).await? else {
            return Err(CacheError::Usage(format!("its NAR {key} is not in the source")));
        };
        target.bucket().put_stream(&as_key, NAR_TYPE, streamed.pieces).await?;
    }
    // The list may still have an earlier object of this name.
    let is_new = object.is_some();
    Ok(CopiedNar { key: as_key, object, size, server_side, is_new })
}

/// Returns a key that no other object has: a name never gets other bytes.
pub(crate) fn another_key(key: &str) -> String {
    let id = uuid::Uuid::now_v7().simple().to_string();
    match key.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{id}-{name}"),
        None => format!("{id}-{key}"),
    }
}
