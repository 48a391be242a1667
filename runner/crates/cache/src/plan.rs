//! Decides what garbage collection condemns, and what it removes now. Pure: it reads no clock and
//! no store.
//!
//! A path is dead if no root reaches it. A dead path is condemned, and it is removed by a later run
//! only if all of the following hold:
//!
//! * it was condemned at least the grace period ago,
//! * its narinfo was not written since,
//! * nothing refers to it that stays, whether from a root or not.
//!
//! The third rule makes removal safe for paths that are uploaded meanwhile: a new path is not
//! condemned, so it stays, and so does everything that it refers to.
//!
//! The same rules hold for objects that belong to paths: NARs, listings, logs and debug
//! information. Other objects are never removed.

use std::collections::{HashMap, HashSet};

use hookrun_capability::binary_cache::condemned::Condemned;

use crate::inventory::{HashPart, Inventory, Kind, Object};

/// The accepted difference between the clock of this machine and that of the store, in seconds.
/// What was written so recently is not condemned.
pub const CLOCK_MARGIN: u64 = 300;

/// The values that a plan depends on, besides the inventory.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    /// The hash parts of the roots.
    pub roots: &'a HashSet<HashPart>,
    /// Paths whose narinfo was written at or after this time are roots.
    pub keep_from: Option<u64>,
    /// What earlier runs condemned.
    pub condemned: &'a Condemned,
    /// The NAR that each debug information object names, by key.
    pub debug_archives: &'a HashMap<String, String>,
    /// In seconds since 1970.
    pub now: u64,
    /// The grace period in seconds.
    pub grace: u64,
}

impl Rules<'_> {
    /// The margin is not longer than the grace period, so that tests and empty buckets need not
    /// wait, but at least the unit of the times.
    fn margin(&self) -> u64 {
        self.grace.clamp(1, CLOCK_MARGIN)
    }

    fn is_young(&self, modified: u64) -> bool {
        modified.saturating_add(self.margin()) >= self.now
    }

    /// Returns whether something was condemned long enough ago.
    fn is_ripe(&self, since: Option<u64>) -> bool {
        since.is_some_and(|since| since.saturating_add(self.grace) <= self.now)
    }

    /// Nothing is condemned within the margin of its last write, so a later write is newer than
    /// that.
    fn was_written_since(&self, since: u64, modified: u64) -> bool {
        modified.saturating_add(self.margin()) >= since
    }
}

/// A number of objects and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Amount {
    /// Objects.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// Adds an object.
    pub fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// The decisions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Paths that a root reaches.
    pub reachable: Amount,
    /// Dead paths, by index into the narinfos of the listing, with the time of their condemnation;
    /// none if they are condemned now.
    pub dead_narinfos: Vec<(usize, Option<u64>)>,
    /// Dead objects, by index into the objects of the listing, likewise.
    pub dead_objects: Vec<(usize, Option<u64>)>,
    /// Narinfos to remove now, referrers first.
    pub remove_narinfos: Vec<usize>,
    /// Objects to remove now, after the narinfos.
    pub remove_objects: Vec<usize>,
    /// Dead paths whose narinfo was written too recently to be condemned.
    pub too_young: u64,
    /// Narinfos that cannot be parsed, which are kept.
    pub malformed: u64,
}

/// Makes the plan.
pub fn plan(inventory: &Inventory, rules: &Rules<'_>) -> Plan {
    let listing = &inventory.listing;
    let mut plan = Plan::default();
    let is_malformed =
        |index: usize| matches!(inventory.nodes.get(index), Some(Some(node)) if node.is_malformed);
    let is_root = |index: usize| {
        listing.narinfos.get(index).is_some_and(|entry| {
            rules.roots.contains(&entry.hash)
                || rules.keep_from.is_some_and(|from| entry.modified >= from)
                || is_malformed(index)
        })
    };
    let reachable = inventory.reachable(is_root);
    // Dead paths, and those of them that may go.
    let mut may_go = vec![false; listing.narinfos.len()];
    let mut is_dead = vec![false; listing.narinfos.len()];
    for (index, entry) in listing.narinfos.iter().enumerate() {
        if reachable.get(index) == Some(&true) {
            plan.reachable.add(entry.size);
            plan.malformed += u64::from(is_malformed(index));
            continue;
        }
        if rules.is_young(entry.modified) {
            plan.too_young += 1;
            continue;
        }
        let since = rules.condemned.narinfo_since(entry.hash.as_str());
        let since = since.filter(|since| !rules.was_written_since(*since, entry.modified));
        plan.dead_narinfos.push((index, since));
        set(&mut is_dead, index);
        if rules.is_ripe(since) {
            set(&mut may_go, index);
        }
    }
    // Whatever stays keeps what it refers to.
    let stays = inventory.reachable(|index| may_go.get(index) == Some(&false));
    let goes = |index: usize| stays.get(index) == Some(&false);
    plan.remove_narinfos =
        inventory.referrers_first().into_iter().filter(|index| goes(*index)).collect();

    // Objects are used by paths that stay; they are condemned if all of their paths are dead.
    let users = Users::of(inventory, &is_dead, goes);
    for (index, object) in listing.objects.iter().enumerate() {
        let Some(used) = users.of_object(object, inventory, rules, &is_dead, goes) else {
            continue;
        };
        if used == Use::Living || rules.is_young(object.modified) {
            continue;
        }
        let since = rules.condemned.object_since(&object.key);
        let since = since.filter(|since| !rules.was_written_since(*since, object.modified));
        plan.dead_objects.push((index, since));
        let is_old = object.modified.saturating_add(rules.grace) <= rules.now;
        if used == Use::None && rules.is_ripe(since) && is_old {
            plan.remove_objects.push(index);
        }
    }
    plan
}

/// Who uses an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// No path, or only paths that are removed now.
    None,
    /// Only dead paths.
    Dead,
    /// A path that is not dead.
    Living,
}

/// The uses of NARs and logs by paths.
struct Users<'a> {
    nars: HashMap<&'a str, Use>,
    logs: HashMap<&'a str, Use>,
}

impl<'a> Users<'a> {
    fn of(inventory: &'a Inventory, is_dead: &[bool], goes: impl Fn(usize) -> bool) -> Self {
        let mut users = Self { nars: HashMap::new(), logs: HashMap::new() };
        for (index, node) in inventory.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let used = use_of(index, is_dead, &goes);
            let note = |map: &mut HashMap<&'a str, Use>, key: &'a str| {
                let known = map.entry(key).or_insert(Use::None);
                *known = used.max(*known);
            };
            if let Some(nar) = &node.nar {
                note(&mut users.nars, nar);
            }
            if let Some(deriver) = &node.deriver {
                note(&mut users.logs, deriver);
            }
        }
        users
    }

    /// Returns how an object is used; none if it is not of a kind that is ever removed.
    fn of_object(
        &self,
        object: &Object,
        inventory: &Inventory,
        rules: &Rules<'_>,
        is_dead: &[bool],
        goes: impl Fn(usize) -> bool,
    ) -> Option<Use> {
        let nar = |key: &str| self.nars.get(key).copied().unwrap_or(Use::None);
        match object.kind {
            Kind::Nar => Some(nar(&object.key)),
            // A log without a path may belong to a derivation that was never uploaded.
            Kind::Log => {
                let name = object.key.strip_prefix("log/")?;
                let known = self.logs.get(name).copied();
                known.or_else(|| rules.condemned.object_since(&object.key).map(|_| Use::None))
            }
            Kind::Listing(hash) => Some(match inventory.listing.narinfo(hash) {
                Some(index) => use_of(index, is_dead, &goes),
                None => Use::None,
            }),
            Kind::DebugInfo => {
                let archive = rules.debug_archives.get(&*object.key)?;
                Some(nar(archive))
            }
            // Another key may be named by a narinfo, as snix does.
            Kind::Other => self.nars.get(&*object.key).copied(),
            Kind::Narinfo(_) | Kind::Realisation | Kind::Own | Kind::CacheInfo => None,
        }
    }
}

fn use_of(index: usize, is_dead: &[bool], goes: &impl Fn(usize) -> bool) -> Use {
    if goes(index) {
        Use::None
    } else if is_dead.get(index) == Some(&true) {
        Use::Dead
    } else {
        Use::Living
    }
}

fn set(flags: &mut [bool], index: usize) {
    if let Some(flag) = flags.get_mut(index) {
        *flag = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::{hash, inventory};

    const GRACE: u64 = 1000;
    const LONG_AGO: u64 = 10;

    fn planned(
        inventory: &Inventory,
        roots: &[usize],
        condemned: &Condemned,
        now: u64,
    ) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
        let roots = roots.iter().map(|number| hash(*number)).collect();
        let rules = Rules {
            roots: &roots,
            keep_from: None,
            condemned,
            debug_archives: &HashMap::new(),
            now,
            grace: GRACE,
        };
        let plan = plan(inventory, &rules);
        let dead = plan.dead_narinfos.iter().map(|(index, _)| *index).collect();
        (dead, plan.remove_narinfos, plan.remove_objects)
    }

    fn condemned(numbers: &[usize], at: u64) -> Condemned {
        let mut condemned = Condemned::default();
        for number in numbers {
            condemned.condemn_narinfo(hash(*number).as_str(), at);
            condemned.condemn_object(&format!("nar/{number:03}"), at);
        }
        condemned
    }

    #[test]
    fn nothing_is_removed_that_was_not_condemned_for_the_grace_period() {
        let inventory = inventory(&[&[1], &[], &[3], &[]], LONG_AGO);
        let at = |condemned: &Condemned, now| planned(&inventory, &[0], condemned, now);
        let (none, all) = (vec![], vec![2, 3]);
        assert_eq!(at(&Condemned::default(), 5000), (all.clone(), none.clone(), none.clone()));
        let condemned = condemned(&[2, 3], 4000);
        assert_eq!(at(&condemned, 4999), (all.clone(), none.clone(), none));
        assert_eq!(at(&condemned, 5000), (all.clone(), all.clone(), all));
    }

    #[test]
    fn a_path_that_was_written_again_is_condemned_anew() {
        let mut inventory = inventory(&[&[], &[]], LONG_AGO);
        inventory.listing.narinfos[1].modified = 3900;
        let (dead, removed, objects) = planned(&inventory, &[], &condemned(&[0, 1], 4000), 6000);
        assert_eq!((dead, removed), (vec![0, 1], vec![0]));
        assert_eq!(objects, [0], "its NAR stays");
    }

    #[test]
    fn what_stays_without_a_root_keeps_what_it_refers_to() {
        // 0 is new and refers to 1, which was condemned long ago.
        let mut inventory = inventory(&[&[1], &[2], &[], &[]], LONG_AGO);
        inventory.listing.narinfos[0].modified = 5900;
        let condemned = condemned(&[1, 2, 3], 4000);
        let (dead, removed, objects) = planned(&inventory, &[], &condemned, 6000);
        assert_eq!((dead, removed, objects), (vec![1, 2, 3], vec![3], vec![3]));
    }

    #[test]
    fn a_nar_that_two_paths_share_stays_with_one_of_them() {
        let mut inventory = inventory(&[&[], &[]], LONG_AGO);
        inventory.nodes[1].as_mut().unwrap().nar = Some("nar/000".into());
        let (_, removed, objects) = planned(&inventory, &[0], &condemned(&[0, 1], 4000), 6000);
        assert_eq!(removed, [1]);
        assert_eq!(objects, [1], "only the NAR that nothing names");
    }

    #[test]
    fn listings_logs_and_debug_information_go_with_their_paths() {
        let mut inventory = inventory(&[&[], &[]], LONG_AGO);
        for (index, node) in inventory.nodes.iter_mut().flatten().enumerate() {
            node.deriver = Some(format!("drv-{index}").into());
        }
        let mut add = |key: String| {
            let object =
                Object { kind: Kind::of(&key), key: key.into(), size: 1, modified: LONG_AGO };
            inventory.listing.objects.push(object);
        };
        for number in 0..2 {
            add(format!("{}.ls", hash(number).as_str()));
            add(format!("log/drv-{number}"));
            add(format!("debuginfo/{number}"));
        }
        add("log/of-another".to_owned());
        add("hookrun/pins/a".to_owned());
        add("index.html".to_owned());
        let mut condemned = condemned(&[1], 4000);
        for object in &inventory.listing.objects {
            condemned.condemn_object(&object.key, 4000);
        }
        let archives = HashMap::from([
            ("debuginfo/0".to_owned(), "nar/000".to_owned()),
            ("debuginfo/1".to_owned(), "nar/001".to_owned()),
        ]);
        let rules = Rules {
            roots: &HashSet::from([hash(0)]),
            keep_from: None,
            condemned: &condemned,
            debug_archives: &archives,
            now: 6000,
            grace: GRACE,
        };
        let plan = plan(&inventory, &rules);
        let removed: Vec<&str> = plan
            .remove_objects
            .iter()
            .map(|index| &*inventory.listing.objects[*index].key)
            .collect();
        let listing = format!("{}.ls", hash(1).as_str());
        // The last is condemned by an earlier run, of which the narinfo is gone.
        let expected = ["nar/001", &listing, "log/drv-1", "debuginfo/1", "log/of-another"];
        assert_eq!(removed, expected);
    }

    #[test]
    fn age_and_malformed_narinfos_are_roots() {
        let mut inventory = inventory(&[&[1], &[], &[3], &[], &[]], LONG_AGO);
        inventory.listing.narinfos[0].modified = 500;
        inventory.nodes[2].as_mut().unwrap().is_malformed = true;
        let rules = Rules {
            roots: &HashSet::new(),
            keep_from: Some(500),
            condemned: &condemned(&[0, 1, 2, 3, 4], 4000),
            debug_archives: &HashMap::new(),
            now: 6000,
            grace: GRACE,
        };
        let plan = plan(&inventory, &rules);
        assert_eq!((plan.remove_narinfos, plan.malformed), (vec![4], 1));
    }
}
