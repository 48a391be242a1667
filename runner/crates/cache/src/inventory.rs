//! All objects of a cache, and the graph of references between its paths.
//!
//! Memory is about 150 bytes for each object and 4 bytes for each reference: a key with its size
//! and time, and indices. The texts of narinfos are not kept.

use std::ops::ControlFlow;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hookrun_capability::object_store::Listed;
use hookrun_nix::narinfo::{Narinfo, SUFFIX, hash_part};

use crate::cache::{CACHE_INFO, Cache};
use crate::{CacheError, pins};

/// The length of the hash part of a store path.
const HASH_LENGTH: usize = 32;
/// The directory of hookrun's own objects.
const OWN: &str = "hookrun/";

/// The hash part of a store path, as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashPart([u8; HASH_LENGTH]);

impl HashPart {
    /// Returns the text as a hash part, if it is one of Nix's base 32.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; HASH_LENGTH] = text.as_bytes().try_into().ok()?;
        let is_base32 = |byte: &u8| {
            matches!(byte, b'0'..=b'9' | b'a'..=b'z') && !matches!(byte, b'e' | b'o' | b'u' | b't')
        };
        bytes.iter().all(is_base32).then_some(Self(bytes))
    }

    /// Returns the hash part of a store path or of its name.
    pub fn of(path: &str) -> Option<Self> {
        Self::parse(hash_part(path))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for HashPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind of an object, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `HASH.narinfo`.
    Narinfo(HashPart),
    /// Below `nar/`, or named by a narinfo.
    Nar,
    /// `HASH.ls`.
    Listing(HashPart),
    /// Below `log/`.
    Log,
    /// Below `debuginfo/`.
    DebugInfo,
    /// Below `realisations/` or `build-trace-v2/`.
    Realisation,
    /// Hookrun's own: pins and lists.
    Own,
    /// `nix-cache-info`.
    CacheInfo,
    /// Anything else.
    Other,
}

impl Kind {
    /// Returns the kind of the object with this key.
    pub fn of(key: &str) -> Self {
        if let Some(hash) = key.strip_suffix(SUFFIX).and_then(HashPart::parse) {
            return Self::Narinfo(hash);
        }
        if let Some(hash) = key.strip_suffix(".ls").and_then(HashPart::parse) {
            return Self::Listing(hash);
        }
        match key.split_once('/').map(|(directory, _)| directory) {
            Some("nar") => Self::Nar,
            Some("log") => Self::Log,
            Some("debuginfo") => Self::DebugInfo,
            Some("realisations" | "build-trace-v2") => Self::Realisation,
            _ if key.starts_with(OWN) => Self::Own,
            _ if key == CACHE_INFO => Self::CacheInfo,
            _ => Self::Other,
        }
    }
}

/// An object that is not a narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: Box<str>,
    /// Its kind.
    pub kind: Kind,
    /// In bytes.
    pub size: u64,
    /// The time of the last write, in seconds since 1970.
    pub modified: u64,
}

/// A narinfo of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The hash part of the path.
    pub hash: HashPart,
    /// The size of the narinfo's object.
    pub size: u64,
    /// The time of the last write, in seconds since 1970.
    pub modified: u64,
}

/// All objects of a cache at one time.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The narinfos, sorted by hash part.
    pub narinfos: Vec<Entry>,
    /// All other objects, sorted by key.
    pub objects: Vec<Object>,
}

impl Listing {
    /// Lists a cache.
    ///
    /// # Errors
    /// As the store has it.
    pub async fn of(cache: &Cache, mut each: impl FnMut(u64)) -> Result<Self, CacheError> {
        let mut listing = Self::default();
        let mut count = 0;
        let take = |listed: Listed| {
            listing.add(listed);
            count += 1;
            each(count);
            ControlFlow::Continue(())
        };
        cache.bucket().list(None, take).await?;
        listing.sort();
        Ok(listing)
    }

    fn add(&mut self, Listed { key, size, modified }: Listed) {
        match Kind::of(&key) {
            Kind::Narinfo(hash) => self.narinfos.push(Entry { hash, size, modified }),
            kind => self.objects.push(Object { key: key.into(), kind, size, modified }),
        }
    }

    fn sort(&mut self) {
        self.narinfos.sort_unstable_by_key(|entry| entry.hash);
        self.narinfos.dedup_by_key(|entry| entry.hash);
        self.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.objects.dedup_by(|a, b| a.key == b.key);
    }

    /// Returns the index of the narinfo of a path.
    pub fn narinfo(&self, hash: HashPart) -> Option<usize> {
        self.narinfos.binary_search_by_key(&hash, |entry| entry.hash).ok()
    }

    /// Returns the index of an object by its key.
    pub fn object(&self, key: &str) -> Option<usize> {
        self.objects.binary_search_by(|object| (*object.key).cmp(key)).ok()
    }

    /// Returns the names of the pins.
    pub fn pins(&self) -> impl Iterator<Item = &str> {
        self.objects.iter().filter_map(|object| object.key.strip_prefix(pins::DIRECTORY))
    }
}

/// What is kept of a narinfo.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The name of the path without the store directory.
    pub name: Box<str>,
    /// The hash parts of the references without the path itself.
    pub references: Box<[HashPart]>,
    /// The key of the NAR; none if the URL does not name an object of the cache.
    pub nar: Option<Box<str>>,
    /// The name of the derivation.
    pub deriver: Option<Box<str>>,
    /// Whether the narinfo cannot be parsed. What looks like its references and its URL is kept.
    pub is_malformed: bool,
}

impl Node {
    fn of(hash: HashPart, narinfo: &Narinfo) -> Self {
        let references = narinfo.references().filter_map(|name| HashPart::of(&name));
        let path = narinfo.store_path();
        Self {
            name: path.rsplit('/').next().unwrap_or_default().into(),
            references: references.filter(|reference| *reference != hash).collect(),
            nar: narinfo.nar_key().ok().map(Into::into),
            deriver: narinfo.deriver().map(Into::into),
            is_malformed: false,
        }
    }

    /// Returns what a text that is not a valid narinfo seems to need.
    fn of_malformed(hash: HashPart, text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let value = |name: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
        };
        let references = value("References").unwrap_or_default().split_whitespace();
        Self {
            name: hash.as_str().into(),
            references: references.filter_map(HashPart::of).collect(),
            nar: value("URL").map(Into::into),
            deriver: None,
            is_malformed: true,
        }
    }
}

/// A listing with what its narinfos say.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The objects.
    pub listing: Listing,
    /// The contents of the narinfos, in the order of the listing; none for one that was deleted
    /// after it was listed.
    pub nodes: Vec<Option<Node>>,
}

impl Inventory {
    /// Reads every narinfo of a listing. Those of `known` that did not change are not read again.
    ///
    /// # Errors
    /// As the store has it: an inventory is complete, because what is not in it may be deleted.
    pub async fn read(
        cache: &Cache,
        listing: Listing,
        known: Option<&Self>,
        parallel: usize,
        mut each: impl FnMut(u64, u64),
    ) -> Result<Self, CacheError> {
        let of = listing.narinfos.len() as u64;
        let mut nodes: Vec<Option<Node>> = vec![None; listing.narinfos.len()];
        let mut unread = Vec::new();
        for (index, entry) in listing.narinfos.iter().enumerate() {
            let same = known.and_then(|known| {
                let at = known.listing.narinfo(entry.hash)?;
                let unchanged = known.listing.narinfos.get(at)? == entry;
                known.nodes.get(at)?.clone().filter(|_| unchanged)
            });
            match (same, nodes.get_mut(index)) {
                (Some(node), Some(place)) => *place = Some(node),
                _ => unread.push((index, entry.hash)),
            }
        }
        let mut done = of - unread.len() as u64;
        let mut reading = stream::iter(unread)
            .map(|(index, hash)| async move {
                let stored = cache.narinfo(hash.as_str()).await?;
                let node = stored.map(|stored| match &stored.narinfo {
                    Ok(narinfo) => Node::of(hash, narinfo),
                    Err(_) => Node::of_malformed(hash, &stored.object.bytes),
                });
                Ok::<_, CacheError>((index, node))
            })
            .buffer_unordered(parallel);
        while let Some((index, node)) = reading.try_next().await? {
            if let Some(place) = nodes.get_mut(index) {
                *place = node;
            }
            done += 1;
            each(done, of);
        }
        drop(reading);
        Ok(Self { listing, nodes })
    }

    /// Returns which narinfos are reachable from those of which `is_root` returns true.
    pub fn reachable(&self, is_root: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut reached = vec![false; self.nodes.len()];
        let mut open: Vec<usize> = (0..self.nodes.len()).filter(|index| is_root(*index)).collect();
        while let Some(index) = open.pop() {
            match reached.get_mut(index) {
                Some(reached) if !*reached => *reached = true,
                _ => continue,
            }
            let Some(Some(node)) = self.nodes.get(index) else { continue };
            open.extend(node.references.iter().filter_map(|hash| self.listing.narinfo(*hash)));
        }
        reached
    }

    /// Returns the paths so that every path comes after those that refer to it.
    pub fn referrers_first(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut state = vec![false; self.nodes.len()];
        for start in 0..self.nodes.len() {
            // (path, number of references that were followed)
            let mut stack = vec![(start, 0)];
            while let Some((index, followed)) = stack.pop() {
                let Some(seen) = state.get_mut(index) else { continue };
                if followed == 0 {
                    if *seen {
                        continue;
                    }
                    *seen = true;
                }
                let node = self.nodes.get(index).and_then(Option::as_ref);
                match node.and_then(|node| node.references.get(followed)) {
                    Some(reference) => {
                        stack.push((index, followed + 1));
                        if let Some(reference) = self.listing.narinfo(*reference)
                            && state.get(reference) == Some(&false)
                        {
                            stack.push((reference, 0));
                        }
                    }
                    None => order.push(index),
                }
            }
        }
        order.reverse();
        order
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the hash part with this number.
    pub(crate) fn hash(number: usize) -> HashPart {
        HashPart::parse(&format!("{number:032}")).unwrap()
    }

    /// Returns an inventory of paths with these references. Each has a NAR `nar/NUMBER`.
    pub(crate) fn inventory(references: &[&[usize]], modified: u64) -> Inventory {
        let mut inventory = Inventory::default();
        for (number, references) in references.iter().enumerate() {
            let entry = Entry { hash: hash(number), size: 100, modified };
            inventory.listing.narinfos.push(entry);
            inventory.listing.objects.push(Object {
                key: format!("nar/{number:03}").into(),
                kind: Kind::Nar,
                size: 1000,
                modified,
            });
            inventory.nodes.push(Some(Node {
                references: references.iter().map(|number| hash(*number)).collect(),
                nar: Some(format!("nar/{number:03}").into()),
                ..Node::default()
            }));
        }
        inventory
    }

    #[test]
    fn kinds_follow_from_keys() {
        let hash = "00bgd045z0d4icpbc2yyz4gx48ak44la";
        let part = HashPart::parse(hash).unwrap();
        assert_eq!(Kind::of(&format!("{hash}.narinfo")), Kind::Narinfo(part));
        assert_eq!(Kind::of(&format!("{hash}.ls")), Kind::Listing(part));
        assert_eq!(Kind::of("nar/x.nar.xz"), Kind::Nar);
        assert_eq!(Kind::of("log/x.drv"), Kind::Log);
        assert_eq!(Kind::of("debuginfo/aa"), Kind::DebugInfo);
        assert_eq!(Kind::of("realisations/x.doi"), Kind::Realisation);
        assert_eq!(Kind::of("hookrun/pins/a"), Kind::Own);
        assert_eq!(Kind::of("nix-cache-info"), Kind::CacheInfo);
        for other in ["index.html", "x.narinfo", "../nar/x", &format!("nar/{hash}.narinfo")] {
            assert!(matches!(Kind::of(other), Kind::Other | Kind::Nar), "{other}");
        }
    }

    #[test]
    fn reachability_follows_references_in_cycles_too() {
        let inventory = inventory(&[&[1], &[2, 9], &[0], &[4], &[]], 0);
        assert_eq!(inventory.reachable(|index| index == 1), [true, true, true, false, false]);
        assert_eq!(inventory.reachable(|index| index == 3), [false, false, false, true, true]);
        assert_eq!(inventory.reachable(|_| false), [false; 5]);
    }

    #[test]
    fn referrers_come_before_references() {
        let inventory = inventory(&[&[1, 2], &[2], &[], &[0]], 0);
        let order = inventory.referrers_first();
        let place = |number| order.iter().position(|index| *index == number).unwrap();
        assert_eq!(order.len(), 4);
        assert!(place(3) < place(0) && place(0) < place(1) && place(1) < place(2));
    }

    #[test]
    fn a_malformed_narinfo_still_protects_what_it_seems_to_name() {
        let node = Node::of_malformed(
            hash(0),
            b"StorePath: nonsense\nURL: nar/x\nReferences: 00bgd045z0d4icpbc2yyz4gx48ak44la-a x\n",
        );
        assert!(node.is_malformed);
        assert_eq!(node.nar.as_deref(), Some("nar/x"));
        assert_eq!(node.references.len(), 1);
    }
}
