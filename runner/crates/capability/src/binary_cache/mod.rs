//! The `binary-cache` interface: uploads valid store paths to a binary cache in an object store,
//! in the layout that Nix reads.
//!
//! A plugin, or a command, decides which paths go to which store and in which form ([`Push`]). The
//! rest is done here, for all pushes of this process together: the order of the work ([`graph`]),
//! one pass over each path ([`transfer`]), narinfos that are only visible when everything that they
//! need is ([`publication`]), and the record of what is present ([`presence`]). The bytes of a
//! store path never pass through a guest, and a plugin cannot break the order.

pub mod cache_info;
pub mod condemned;
mod graph;
mod index;
mod presence;
mod publication;
mod push;
mod report;
mod transfer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use self::presence::Presence;
use self::push::Prepared;
pub use self::report::{Failed, Progress, Report};
use super::{SandboxNeeds, Service};
use hookrun_config::{Config, Grant};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::nar::Compression;

/// What to upload, and where.
#[derive(Debug, Clone)]
pub struct Push {
    /// The name of the object store.
    pub store: String,
    /// Paths with their form.
    pub groups: Vec<Group>,
    /// Paths that other caches have, so that this one need not have them.
    pub elsewhere: Vec<String>,
    /// What holds for all paths.
    pub settings: Settings,
}

/// Paths with the same form.
#[derive(Debug, Clone)]
pub struct Group {
    /// Full paths of valid store paths.
    pub paths: Vec<String>,
    pub form: Form,
}

/// How the NAR of a path is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    pub compression: Compression,
    /// The service's name of the class of its objects.
    pub storage_class: Option<String>,
    /// Tags of its objects.
    pub tags: Vec<(String, String)>,
}

impl Form {
    /// The form with this compression and nothing else.
    pub fn compressed(compression: Compression) -> Self {
        Self { compression, storage_class: None, tags: Vec::new() }
    }
}

/// What holds for all paths of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The names of the keys that sign.
    pub keys: Vec<String>,
    /// Whether a path may be uploaded that has no signature and no content address.
    pub allow_unsigned: bool,
    /// What to do about an unsigned path, as the end of a message.
    pub unsigned_fix: String,
    /// Whether references that are neither pushed nor `elsewhere` may be missing in the cache.
    pub missing_references: bool,
    /// `Priority` of a new cache.
    pub priority: Option<u32>,
    /// `WantMassQuery` of a new cache.
    pub want_mass_query: bool,
    /// The header `Cache-Control` of NARs, which never change.
    pub cache_control: Option<String>,
    /// Whether to write a listing of the files of each path.
    pub listings: bool,
    /// Whether to write an index of the debug information in each path.
    pub debug_info: bool,
    /// Whether listings are compressed with zstd, where the service keeps the header that says so.
    pub compress_listings: bool,
    /// Whether paths that are known to be present are not looked up again.
    pub trust_presence: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            allow_unsigned: false,
            unsigned_fix: "name a signing key".to_owned(),
            missing_references: false,
            priority: None,
            want_mass_query: true,
            cache_control: None,
            listings: false,
            debug_info: false,
            compress_listings: false,
            trust_presence: true,
        }
    }
}

/// Large NARs of one process that are sent at the same time.
const LARGE_AT_ONCE: usize = 4;
/// The service: what all pushes of this process have in common.
#[derive(Debug)]
pub struct BinaryCaches {
    presence: Presence,
    /// The narinfos that are being written.
    publications: Flights<()>,
    /// The caches that were prepared.
    prepared: Flights<Prepared>,
    /// Large NARs that may be sent now.
    large: Semaphore,
}

/// Locks by name, so that the same thing is done once at a time, with the result of the last one
/// who has done it.
#[derive(Debug)]
struct Flights<T>(Mutex<HashMap<presence::Name, Flight<T>>>);

type Flight<T> = Arc<tokio::sync::Mutex<Option<T>>>;

/// Locks that are kept when nobody holds them.
const MAX_FLIGHTS: usize = 10_000;

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Flights<T> {
    fn of(&self, name: presence::Name) -> Flight<T> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.len() >= MAX_FLIGHTS {
            flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        }
        Arc::clone(flights.entry(name).or_default())
    }
}

impl Service for BinaryCaches {
    fn configure(_config: &Config, dirs: &Dirs) -> Self {
        Self::new(Presence::below(&dirs.presence()))
    }

    fn in_memory(_config: &Config, _dirs: &Dirs) -> Self {
        Self::new(Presence::default())
    }

    fn sandbox_needs(&self, grant: &Grant, dirs: &Dirs) -> SandboxNeeds {
        if grant.object_store.is_empty() {
            SandboxNeeds::default()
        } else {
            SandboxNeeds::directory(&dirs.presence())
        }
    }
}

impl BinaryCaches {
    fn new(presence: Presence) -> Self {
        Self {
            presence,
            publications: Flights::default(),
            prepared: Flights::default(),
            large: Semaphore::new(LARGE_AT_ONCE),
        }
    }
}
