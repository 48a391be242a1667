//! Garbage collection in two phases. The first run condemns what no root reaches; a later run
//! removes what was condemned for the grace period and is still not reachable.
//!
//! A run that removes something announces the sweep in the list of condemned objects, waits until
//! every upload that has not seen the announcement has ended its current narinfo, reads the cache
//! again, and removes only what is still dead then. Uploads that have seen the announcement write
//! nothing for condemned paths before the sweep has ended
//! (`hookrun_capability::binary_cache::condemned`).
//!
//! A run can be interrupted anywhere: narinfos are removed before the objects that they name, and
//! referrers before references, so what stays is a valid cache. The next run removes the rest.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookrun_capability::binary_cache::condemned::{self, Condemned};
use hookrun_nix::narinfo::SUFFIX;
use serde::Serialize;

use crate::cache::ATTEMPTS;
use crate::inventory::{HashPart, Inventory, Kind, Listing};
use crate::plan::{Amount, Plan, Rules, plan};
use crate::roots::Roots;
use crate::{Cache, CacheError, pins};

/// The default grace period. It is longer than an upload believes that a path is present, together
/// with the longest upload.
pub const GRACE: Duration = Duration::from_hours(48);
/// The default time after the announcement of a sweep: the age at which uploads read the list
/// again, and the time of one small request with its retries.
pub const SETTLE: Duration = Duration::from_mins(3);
/// How long the announcement of a sweep is valid. It is renewed while the sweep runs.
const LEASE: u64 = 1800;
/// A sweep stops this many seconds before its announcement expires.
const LEASE_MARGIN: u64 = 120;
/// The number of objects that are removed between two looks at the announcement.
const CHUNK: usize = 1000;
/// The size limit of a debug information object in bytes.
const MAX_DEBUG_INFO: u64 = 64 << 10;

/// Settings of a collection.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// In seconds.
    pub grace: u64,
    /// Paths that were uploaded so many seconds ago or later are roots.
    pub keep_newer_than: Option<u64>,
    /// Requests at the same time.
    pub parallel: usize,
}

/// What a run does, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Objects were listed.
    Listed(u64),
    /// Narinfos were read, of so many.
    Read(u64, u64),
    /// The sweep is announced, and the run waits.
    Settling,
    /// Objects were removed, of so many.
    Removed(u64, u64),
}

/// A dead path or object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dead {
    /// The name of the path, or the key of an object.
    pub name: String,
    /// The bytes of the narinfo and its NAR, or of the object.
    pub bytes: u64,
    /// When it was condemned, in seconds since 1970; none if this run is the first that sees it.
    pub condemned: Option<u64>,
    /// Whether this run removes it, or would.
    pub removable: bool,
}

/// The state of a cache as a run sees it.
#[derive(Debug)]
pub struct Survey {
    /// All objects.
    pub inventory: Inventory,
    /// The decisions.
    pub plan: Plan,
    /// The list of condemned objects.
    pub condemned: Condemned,
    /// The number of roots by source.
    pub roots: Vec<(String, u64)>,
    /// The number of roots.
    pub root_count: usize,
    debug_archives: HashMap<String, String>,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// What was removed.
    pub removed: Amount,
    /// Objects that are condemned now.
    pub condemned: u64,
    /// Multipart uploads that were ended; none if the service cannot list them.
    pub ended_uploads: Option<u64>,
    /// Another run sweeps until this time, so nothing was removed.
    pub swept_by_another_until: Option<u64>,
    /// The announcement of the sweep expired or was removed before everything was removed.
    pub stopped_early: bool,
}

/// Reads a cache and makes a plan. Changes nothing.
///
/// # Errors
/// As the store has it.
pub async fn survey(
    cache: &Cache,
    base: &Roots,
    options: &Options,
    known: Option<&Survey>,
    step: &mut dyn FnMut(Step),
) -> Result<Survey, CacheError> {
    let (condemned, _) = cache.condemned().await?;
    let listing = Listing::of(cache, |count| step(Step::Listed(count))).await?;
    let mut roots = base.clone();
    let names = listing.pins().map(str::to_owned).collect();
    roots.add_pins(&pins::named(cache, names).await?);
    let known_inventory = known.map(|known| &known.inventory);
    let read = |done, of| step(Step::Read(done, of));
    let inventory =
        Inventory::read(cache, listing, known_inventory, options.parallel, read).await?;
    let debug_archives = debug_archives(cache, &inventory.listing, known, options.parallel).await?;
    let now = cache.now();
    let rules = Rules {
        roots: &roots.hashes,
        keep_from: options.keep_newer_than.map(|age| now.saturating_sub(age)),
        condemned: &condemned,
        debug_archives: &debug_archives,
        now,
        grace: options.grace,
    };
    let plan = plan(&inventory, &rules);
    let Roots { hashes, counts } = roots;
    let root_count = hashes.len();
    Ok(Survey { inventory, plan, condemned, roots: counts, root_count, debug_archives })
}

impl Survey {
    /// Returns the dead paths, and the dead objects that belong to no path, largest first.
    pub fn dead(&self) -> Vec<Dead> {
        let listing = &self.inventory.listing;
        let mut named = HashSet::new();
        let mut dead = Vec::new();
        let removable: HashSet<usize> = self.plan.remove_narinfos.iter().copied().collect();
        for (index, since) in &self.plan.dead_narinfos {
            let (Some(entry), Some(node)) =
                (listing.narinfos.get(*index), self.inventory.nodes.get(*index))
            else {
                continue;
            };
            let node = node.as_ref();
            let nar = node.and_then(|node| node.nar.as_deref());
            let nar_index = nar.and_then(|key| listing.object(key));
            let nar_size = nar_index
                .filter(|index| named.insert(*index))
                .and_then(|index| listing.objects.get(index))
                .map_or(0, |object| object.size);
            let name = node.map_or_else(|| entry.hash.as_str(), |node| &node.name);
            dead.push(Dead {
                name: name.to_owned(),
                bytes: entry.size.saturating_add(nar_size),
                condemned: *since,
                removable: removable.contains(index),
            });
        }
        let removable: HashSet<usize> = self.plan.remove_objects.iter().copied().collect();
        for (index, since) in &self.plan.dead_objects {
            let Some(object) = listing.objects.get(*index).filter(|_| !named.contains(index))
            else {
                continue;
            };
            dead.push(Dead {
                name: object.key.to_string(),
                bytes: object.size,
                condemned: *since,
                removable: removable.contains(index),
            });
        }
        dead.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        dead
    }

    /// Returns the amount of dead objects that are kept for now, and of those that are removed.
    pub fn amounts(&self) -> (Amount, Amount) {
        let listing = &self.inventory.listing;
        let (mut waiting, mut removable) = (Amount::default(), Amount::default());
        let narinfo_size = |index: usize| listing.narinfos.get(index).map_or(0, |found| found.size);
        let object_size = |index: usize| listing.objects.get(index).map_or(0, |found| found.size);
        for index in &self.plan.remove_narinfos {
            removable.add(narinfo_size(*index));
        }
        for index in &self.plan.remove_objects {
            removable.add(object_size(*index));
        }
        let narinfos: HashSet<&usize> = self.plan.remove_narinfos.iter().collect();
        for (index, _) in
            self.plan.dead_narinfos.iter().filter(|(index, _)| !narinfos.contains(index))
        {
            waiting.add(narinfo_size(*index));
        }
        let objects: HashSet<&usize> = self.plan.remove_objects.iter().collect();
        for (index, _) in
            self.plan.dead_objects.iter().filter(|(index, _)| !objects.contains(index))
        {
            waiting.add(object_size(*index));
        }
        (waiting, removable)
    }

    fn removes_something(&self) -> bool {
        !self.plan.remove_narinfos.is_empty() || !self.plan.remove_objects.is_empty()
    }

    /// Returns the list after this survey, without what is in `removed`.
    fn next_list(&self, now: u64, removed: &HashSet<String>) -> Condemned {
        let listing = &self.inventory.listing;
        let mut list = Condemned::default();
        for (index, since) in &self.plan.dead_narinfos {
            let Some(entry) = listing.narinfos.get(*index) else { continue };
            if !removed.contains(&narinfo_key(entry.hash)) {
                list.condemn_narinfo(entry.hash.as_str(), since.unwrap_or(now));
            }
        }
        for (index, since) in &self.plan.dead_objects {
            let Some(object) = listing.objects.get(*index) else { continue };
            if !removed.contains(&*object.key) {
                list.condemn_object(&object.key, since.unwrap_or(now));
            }
        }
        list
    }
}

/// Condemns what is dead, and removes what was condemned for the grace period. `settle` waits
/// until no upload acts on an older list ([`SETTLE`]).
///
/// # Errors
/// As the store has it. What was removed until then stays removed.
pub async fn run(
    cache: &Cache,
    base: &Roots,
    options: &Options,
    first: Survey,
    settle: impl Future<Output = ()>,
    step: &mut dyn FnMut(Step),
) -> Result<Report, CacheError> {
    let mut report =
        Report { ended_uploads: end_uploads(cache, options).await?, ..Report::default() };
    let none = HashSet::new();
    let other = first.condemned.sweeping_until(cache.now());
    if other.is_some() || !first.removes_something() {
        let list = write_list(cache, |old| {
            let mut list = first.next_list(cache.now(), &none);
            list.keep_sweeps_of(old, cache.now());
            Some(list)
        });
        report.condemned = list.await?.len() as u64;
        report.swept_by_another_until = other.filter(|_| first.removes_something());
        return Ok(report);
    }

    let id = uuid::Uuid::now_v7().to_string();
    let mut other = None;
    write_list(cache, |old| {
        other = old.sweeping_until(cache.now());
        let mut list = first.next_list(cache.now(), &none);
        list.keep_sweeps_of(old, cache.now());
        if other.is_none() {
            list.begin_sweep(&id, cache.now().saturating_add(LEASE));
        }
        Some(list)
    })
    .await?;
    if other.is_some() {
        report.swept_by_another_until = other;
        return Ok(report);
    }
    step(Step::Settling);
    settle.await;

    let second = survey(cache, base, options, Some(&first), step).await?;
    let mut removed = HashSet::new();
    let swept = sweep(cache, &id, &second, &mut removed, &mut report, step).await;
    let list = write_list(cache, |old| {
        let mut list = second.next_list(cache.now(), &removed);
        list.keep_sweeps_of(old, cache.now());
        list.end_sweep(&id, cache.now());
        Some(list)
    });
    // What went wrong first is the error.
    let list = list.await;
    swept?;
    report.condemned = list?.len() as u64;
    Ok(report)
}

/// Removes what the plan says, while the announcement is valid.
async fn sweep(
    cache: &Cache,
    id: &str,
    survey: &Survey,
    removed: &mut HashSet<String>,
    report: &mut Report,
    step: &mut dyn FnMut(Step),
) -> Result<(), CacheError> {
    let listing = &survey.inventory.listing;
    let narinfos = survey.plan.remove_narinfos.iter();
    let narinfos = narinfos.filter_map(|index| listing.narinfos.get(*index));
    let narinfos: Vec<(String, u64)> =
        narinfos.map(|entry| (narinfo_key(entry.hash), entry.size)).collect();
    let objects = survey.plan.remove_objects.iter();
    let objects = objects.filter_map(|index| listing.objects.get(*index));
    let objects: Vec<(String, u64)> =
        objects.map(|object| (object.key.to_string(), object.size)).collect();
    let of = (narinfos.len() + objects.len()) as u64;
    // No request removes both: an object goes when its narinfo is gone.
    for chunk in narinfos.chunks(CHUNK).chain(objects.chunks(CHUNK)) {
        if !still_announced(cache, id).await? {
            report.stopped_early = true;
            return Ok(());
        }
        let keys = chunk.iter().map(|(key, _)| key.clone()).collect();
        let (_, error) = cache.bucket().delete(keys).await;
        if let Some(error) = error {
            return Err(error.into());
        }
        for (key, size) in chunk {
            report.removed.add(*size);
            removed.insert(key.clone());
        }
        step(Step::Removed(report.removed.count, of));
    }
    Ok(())
}

/// Returns whether the announcement of the sweep is in the list for long enough. Renews it.
async fn still_announced(cache: &Cache, id: &str) -> Result<bool, CacheError> {
    let (list, _) = cache.condemned().await?;
    let now = cache.now();
    let Some(until) = list.sweep(id).filter(|until| *until > now.saturating_add(LEASE_MARGIN))
    else {
        return Ok(false);
    };
    if until > now.saturating_add(LEASE / 2) {
        return Ok(true);
    }
    let renewed = write_list(cache, |old| {
        let mut list = old.clone();
        list.sweep(id)?;
        list.begin_sweep(id, cache.now().saturating_add(LEASE));
        Some(list)
    });
    Ok(renewed.await?.sweep(id).is_some())
}

/// Changes the list of condemned objects; returns the list that is there then.
async fn write_list(
    cache: &Cache,
    mut change: impl FnMut(&Condemned) -> Option<Condemned>,
) -> Result<Condemned, CacheError> {
    let bucket = cache.bucket();
    for _ in 0..ATTEMPTS {
        let (old, object) = cache.condemned().await?;
        let Some(new) = change(&old) else { return Ok(old) };
        let text = new.to_string().into_bytes();
        let written = match &object {
            None if new == Condemned::default() => true,
            None => bucket.create(condemned::KEY, condemned::CONTENT_TYPE, text).await?,
            Some(object) if object.bytes == text => true,
            Some(object) => {
                bucket.replace(condemned::KEY, condemned::CONTENT_TYPE, object, text).await?
            }
        };
        if written {
            return Ok(new);
        }
    }
    Err(CacheError::Contended { key: condemned::KEY.to_owned() })
}

/// Ends multipart uploads that are older than the grace period.
async fn end_uploads(cache: &Cache, options: &Options) -> Result<Option<u64>, CacheError> {
    let Some(uploads) = cache.bucket().incomplete().await? else { return Ok(None) };
    let mut ended = 0;
    for upload in uploads {
        if upload.begun.saturating_add(options.grace) < cache.now() {
            cache.bucket().abort(&upload).await?;
            ended += 1;
        }
    }
    Ok(Some(ended))
}

/// Returns the NAR that each debug information object names (Nix `binary-cache-store.cc`: a
/// relative URL in `archive`).
async fn debug_archives(
    cache: &Cache,
    listing: &Listing,
    known: Option<&Survey>,
    parallel: usize,
) -> Result<HashMap<String, String>, CacheError> {
    let mut archives = known.map(|known| known.debug_archives.clone()).unwrap_or_default();
    let objects = listing.objects.iter().filter(|object| object.kind == Kind::DebugInfo);
    let unread: Vec<String> = objects
        .map(|object| object.key.to_string())
        .filter(|key| !archives.contains_key(key))
        .collect();
    let reading = stream::iter(unread).map(|key| async move {
        let object = match cache.bucket().get(&key, MAX_DEBUG_INFO).await {
            Err(error) if error.kind == hookrun_capability::ErrorKind::Limit => None,
            other => other?,
        };
        let archive = object.and_then(|object| {
            let value: serde_json::Value = serde_json::from_slice(&object.bytes).ok()?;
            Some(value.get("archive")?.as_str()?.strip_prefix("../")?.to_owned())
        });
        Ok::<_, CacheError>((key, archive))
    });
    let read: Vec<_> = reading.buffer_unordered(parallel).try_collect().await?;
    archives.extend(read.into_iter().filter_map(|(key, archive)| Some((key, archive?))));
    Ok(archives)
}

fn narinfo_key(hash: HashPart) -> String {
    format!("{}{SUFFIX}", hash.as_str())
}
