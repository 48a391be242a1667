//! The object `hookrun/gc/condemned` of a cache: what `hookrun cache gc` is going to remove, and
//! since when. It is the agreement between garbage collection and uploads, which may run on other
//! machines.
//!
//! ```text
//! hookrun-condemned 1
//! sweep 0192f3a1-7c7e-7000-8000-000000000000 1764300000
//! at 1764200000
//! narinfo 00bgd045z0d4icpbc2yyz4gx48ak44la
//! object nar/0ip26j2h11n1kgkz36rl4akv694yz65hr72q4kv4b3lxcbi65b3p.nar.xz
//! ```
//!
//! Times are seconds since 1970. `at` is the time at which the lines after it were condemned.
//! `sweep` says that a run removes condemned objects until the given time. Lines that start with
//! another word are ignored.
//!
//! An upload reads the object before it relies on what is in the cache, and again if its copy is
//! older than [`REREAD`] when it writes a narinfo. [`Condemned::narinfo`] and
//! [`Condemned::object`] say what to do:
//!
//! * [`Standing::Free`] needs nothing.
//! * [`Standing::Condemned`] means that the path counts as absent. Writing its narinfo again
//!   revives it.
//! * [`Standing::Sweeping`] means the same, but no narinfo of this path, and none that names this
//!   object, may be written before the time, because the sweep may be removing it.
//!
//! `docs/binary-cache.md` has the argument why nothing that is in use is removed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

/// The key of the object.
pub const KEY: &str = "hookrun/gc/condemned";
/// The content type of the object.
pub const CONTENT_TYPE: &str = "text/plain";
/// The maximum size of the object in bytes: more than 500,000 lines.
pub const MAX_SIZE: u64 = 64 << 20;
/// The maximum age of the copy by which an upload writes a narinfo.
pub const REREAD: Duration = Duration::from_mins(1);

/// The first line.
const HEADER: &str = "hookrun-condemned 1";
/// The length of the hash part of a store path.
const HASH_LENGTH: usize = 32;

/// The contents of the object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condemned {
    /// The runs that remove objects, by id: the time at which each ends.
    sweeps: BTreeMap<String, u64>,
    /// The hash parts of paths, with the time at which they were condemned.
    narinfos: HashMap<[u8; HASH_LENGTH], u64>,
    /// The keys of other objects, likewise.
    objects: HashMap<String, u64>,
}

/// What an upload has to know about a path or an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is not condemned.
    Free,
    /// It counts as absent.
    Condemned,
    /// It counts as absent, and nothing may be written for it before this time.
    Sweeping {
        /// In seconds since 1970.
        until: u64,
    },
}

/// The reason why the object cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CondemnedError {
    /// The object was written by a newer version, or by something else.
    #[error("`{KEY}` does not start with `{HEADER}`; update hookrun")]
    Version,
    /// A line is malformed.
    #[error("line {line} of `{KEY}` is malformed; remove the object, and run `hookrun cache gc`")]
    Line {
        /// The number of the line, from 1.
        line: usize,
    },
}

impl Condemned {
    /// Parses the contents of the object.
    ///
    /// # Errors
    /// The version is unknown, or a line is malformed. An upload must not rely on the cache then.
    pub fn parse(bytes: &[u8]) -> Result<Self, CondemnedError> {
        let text = std::str::from_utf8(bytes).map_err(|_| CondemnedError::Version)?;
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, first)| first != HEADER) {
            return Err(CondemnedError::Version);
        }
        let mut condemned = Self::default();
        let mut at = None;
        for (index, line) in lines {
            let malformed = || CondemnedError::Line { line: index + 1 };
            let (word, value) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "at" => at = Some(value.parse().map_err(|_| malformed())?),
                "sweep" => {
                    let (id, until) = value.split_once(' ').ok_or_else(malformed)?;
                    let until = until.parse().map_err(|_| malformed())?;
                    condemned.sweeps.insert(id.to_owned(), until);
                }
                "narinfo" => {
                    let hash = hash_part(value).ok_or_else(malformed)?;
                    condemned.narinfos.insert(hash, at.ok_or_else(malformed)?);
                }
                "object" if !value.is_empty() => {
                    condemned.objects.insert(value.to_owned(), at.ok_or_else(malformed)?);
                }
                "object" => return Err(malformed()),
                _ => {}
            }
        }
        Ok(condemned)
    }

    /// Returns the standing of the path with this hash part at the time `now`.
    pub fn narinfo(&self, hash: &str, now: u64) -> Standing {
        self.standing(hash_part(hash).is_some_and(|hash| self.narinfos.contains_key(&hash)), now)
    }

    /// Returns the standing of the object with this key at the time `now`.
    pub fn object(&self, key: &str, now: u64) -> Standing {
        self.standing(self.objects.contains_key(key), now)
    }

    fn standing(&self, is_condemned: bool, now: u64) -> Standing {
        let until = self.sweeping_until(now);
        match (is_condemned, until) {
            (false, _) => Standing::Free,
            (true, None) => Standing::Condemned,
            (true, Some(until)) => Standing::Sweeping { until },
        }
    }

    /// Returns the time at which the last sweep ends that has not ended.
    pub fn sweeping_until(&self, now: u64) -> Option<u64> {
        self.sweeps.values().copied().filter(|until| *until > now).max()
    }

    /// Returns the time at which a path was condemned, by its hash part.
    pub fn narinfo_since(&self, hash: &str) -> Option<u64> {
        self.narinfos.get(&hash_part(hash)?).copied()
    }

    /// Returns the time at which an object was condemned.
    pub fn object_since(&self, key: &str) -> Option<u64> {
        self.objects.get(key).copied()
    }

    /// Condemns a path by its hash part, unless it is condemned already.
    pub fn condemn_narinfo(&mut self, hash: &str, at: u64) {
        if let Some(hash) = hash_part(hash) {
            self.narinfos.entry(hash).or_insert(at);
        }
    }

    /// Condemns an object, unless it is condemned already. A key that is not printable ASCII is
    /// ignored: it would not be read back unchanged.
    pub fn condemn_object(&mut self, key: &str, at: u64) {
        if !key.is_empty() && key.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
            self.objects.entry(key.to_owned()).or_insert(at);
        }
    }

    /// Returns the hash parts of the condemned paths, sorted.
    pub fn narinfos(&self) -> Vec<&str> {
        let hashes = self.narinfos.keys();
        let mut hashes: Vec<&str> =
            hashes.filter_map(|hash| std::str::from_utf8(hash).ok()).collect();
        hashes.sort_unstable();
        hashes
    }

    /// Returns the keys of the other condemned objects, sorted.
    pub fn objects(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.objects.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// Returns the number of condemned paths and objects.
    pub fn len(&self) -> usize {
        self.narinfos.len() + self.objects.len()
    }

    /// Returns whether nothing is condemned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Announces that the run `id` removes condemned objects until the given time.
    pub fn begin_sweep(&mut self, id: &str, until: u64) {
        self.sweeps.insert(id.to_owned(), until);
    }

    /// Returns when the announced sweep of the run `id` ends.
    pub fn sweep(&self, id: &str) -> Option<u64> {
        self.sweeps.get(id).copied()
    }

    /// Takes over the announcements of another list that have not ended.
    pub fn keep_sweeps_of(&mut self, other: &Self, now: u64) {
        let running = other.sweeps.iter().filter(|(_, until)| **until > now);
        self.sweeps.extend(running.map(|(id, until)| (id.clone(), *until)));
    }

    /// Removes the announcement of the run `id`, and those that ended before `now`.
    pub fn end_sweep(&mut self, id: &str, now: u64) {
        self.sweeps.retain(|other, until| other != id && *until > now);
    }
}

impl fmt::Display for Condemned {
    /// Writes the object: equal contents have equal bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        for (id, until) in &self.sweeps {
            writeln!(f, "sweep {id} {until}")?;
        }
        let narinfos = self.narinfos().into_iter();
        let narinfos =
            narinfos.filter_map(|hash| Some((self.narinfo_since(hash)?, "narinfo", hash)));
        let objects = self.objects().into_iter();
        let objects = objects.filter_map(|key| Some((self.object_since(key)?, "object", key)));
        let mut lines: Vec<(u64, &str, &str)> = narinfos.chain(objects).collect();
        lines.sort_unstable();
        let mut last = None;
        for (at, word, value) in lines {
            if last != Some(at) {
                writeln!(f, "at {at}")?;
                last = Some(at);
            }
            writeln!(f, "{word} {value}")?;
        }
        Ok(())
    }
}

/// Returns the text as a hash part, if it has the form of one.
fn hash_part(text: &str) -> Option<[u8; HASH_LENGTH]> {
    let is_plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'));
    text.as_bytes().try_into().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
    const B: &str = "p723wxdipj0l4izmjkpnq3l02yh5s5zz";

    #[test]
    fn what_is_written_is_read_back() {
        let mut condemned = Condemned::default();
        condemned.condemn_narinfo(B, 20);
        condemned.condemn_narinfo(A, 10);
        condemned.condemn_narinfo(A, 30);
        condemned.condemn_object("nar/x.nar.zst", 10);
        condemned.condemn_object("with\nbreak", 10);
        condemned.begin_sweep("id", 99);
        let text = condemned.to_string();
        assert_eq!(
            text,
            format!(
                "hookrun-condemned 1\nsweep id 99\nat 10\nnarinfo {A}\nobject nar/x.nar.zst\n\
                 at 20\nnarinfo {B}\n"
            )
        );
        assert_eq!(Condemned::parse(text.as_bytes()), Ok(condemned));
    }

    #[test]
    fn an_upload_waits_only_for_what_a_running_sweep_may_remove() {
        let mut condemned = Condemned::default();
        condemned.condemn_narinfo(A, 10);
        condemned.condemn_object("nar/x", 10);
        assert_eq!(condemned.narinfo(A, 50), Standing::Condemned);
        assert_eq!(condemned.narinfo(B, 50), Standing::Free);
        condemned.begin_sweep("one", 60);
        condemned.begin_sweep("two", 70);
        assert_eq!(condemned.narinfo(A, 50), Standing::Sweeping { until: 70 });
        assert_eq!(condemned.object("nar/x", 65), Standing::Sweeping { until: 70 });
        assert_eq!(condemned.object("nar/y", 65), Standing::Free);
        assert_eq!(condemned.narinfo(A, 70), Standing::Condemned, "the announcement expired");
        condemned.end_sweep("two", 50);
        assert_eq!((condemned.sweep("one"), condemned.sweep("two")), (Some(60), None));
    }

    #[test]
    fn a_list_of_another_form_is_refused_and_unknown_words_are_not() {
        for bytes in [&b""[..], b"hookrun-condemned 2\n", b"\xff"] {
            assert_eq!(Condemned::parse(bytes), Err(CondemnedError::Version));
        }
        let line = |text: &str| Condemned::parse(format!("{HEADER}\n{text}\n").as_bytes());
        for text in
            [&format!("narinfo {A}"), "at x", "at 1\nnarinfo ../x", "at 1\nobject ", "sweep x"]
        {
            assert!(matches!(line(text), Err(CondemnedError::Line { .. })), "{text}");
        }
        assert_eq!(line("later word\n\nat 1"), Ok(Condemned::default()));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, lines in "(at|narinfo|object|sweep) \\PC*\n") {
            let _ = Condemned::parse(&bytes);
            let _ = Condemned::parse(format!("{HEADER}\n{lines}").as_bytes());
        }
    }
}
