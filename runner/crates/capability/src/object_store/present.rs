//! The objects that this process knows to be in a store, because they were seen or written a short
//! while ago, and uploads of NARs that are under way or have just ended.
//!
//! Only presence is remembered, and not for long: others may delete objects. It saves the look-ups
//! of builds that follow one another, and sends a NAR once when several tasks want it at the same
//! time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hookrun_nix::nar::Written;

/// How long presence is believed.
const BELIEVED: Duration = Duration::from_mins(15);
/// Objects remembered, of 24 bytes and some each.
const MAX_OBJECTS: usize = 200_000;
/// Uploads remembered that have ended.
const MAX_UPLOADS: usize = 20_000;

/// A name in so few bytes that two names never share them.
type Name = [u8; 16];

fn name(store: &str, key: &str) -> Name {
    let mut hasher = blake3::Hasher::new();
    hasher.update(store.as_bytes()).update(&[0]).update(key.as_bytes());
    let mut name = Name::default();
    hasher.finalize_xof().fill(&mut name);
    name
}

/// Objects known to be present.
#[derive(Debug, Default)]
pub(super) struct Present(Mutex<HashMap<Name, Instant>>);

impl Present {
    /// Returns whether the object was seen a short while ago.
    pub(super) fn has(&self, store: &str, key: &str) -> bool {
        let objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        objects.get(&name(store, key)).is_some_and(|seen| seen.elapsed() < BELIEVED)
    }

    /// The object is there now.
    pub(super) fn seen(&self, store: &str, key: &str) {
        let mut objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if objects.len() >= MAX_OBJECTS {
            objects.retain(|_, seen| seen.elapsed() < BELIEVED);
        }
        if objects.len() >= MAX_OBJECTS {
            objects.clear();
        }
        objects.insert(name(store, key), Instant::now());
    }
}

/// One upload of an object: locked while it is under way; what was written and when, once it has
/// ended well.
pub(super) type Upload = Arc<tokio::sync::Mutex<Option<(Instant, Written)>>>;

/// Uploads by object.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<Name, Upload>>);

impl Uploads {
    /// The upload of this object: whoever locks it first makes it, and the others find what was
    /// written.
    pub(super) fn of(&self, store: &str, key: &str) -> Upload {
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.len() >= MAX_UPLOADS {
            uploads.retain(|_, upload| Arc::strong_count(upload) > 1);
        }
        Arc::clone(uploads.entry(name(store, key)).or_default())
    }
}

/// What an upload that ended well has written, if that is not long ago.
pub(super) fn written(upload: Option<&(Instant, Written)>) -> Option<Written> {
    upload.filter(|(ended, _)| ended.elapsed() < BELIEVED).map(|(_, written)| written.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_remembered_by_store_and_key() {
        let present = Present::default();
        present.seen("a", "b/c");
        assert!(present.has("a", "b/c"));
        assert!(!present.has("a", "b/d") && !present.has("a/b", "c") && !present.has("b", "b/c"));
    }

    #[test]
    fn memory_is_bounded() {
        let present = Present::default();
        for number in 0..=MAX_OBJECTS {
            present.seen("a", &number.to_string());
        }
        assert!(present.0.lock().unwrap().len() <= MAX_OBJECTS);
        assert!(present.has("a", &MAX_OBJECTS.to_string()), "the latest is there");
    }
}
