//! Uploads of store paths to binary caches. Wants `nix_store`, `object_store` and, for signatures,
//! `signing`. The time that a call takes does not count as the plugin's wall time.
//!
//! The plugin decides which paths go to which cache and in which form. The host reads, hashes,
//! compresses, signs and sends them, many at a time. It publishes a path only after its references,
//! and uploads paths that several runs need at the same time once.
//!
//! ```no_run
//! use hookrun_sdk::binary_cache::{self, Group, Settings};
//! use hookrun_sdk::{nix_store, signing};
//!
//! # fn example(outputs: &[String]) -> Result<(), hookrun_sdk::Error> {
//! let settings = Settings { keys: signing::keys()?, ..Settings::default() };
//! let paths = Group { paths: nix_store::closure(outputs)?, ..Group::default() };
//! let report = binary_cache::push("cache", &settings, &[paths], &[])?;
//! if let Some(failure) = report.failures.first() {
//!     return Err(failure.error.clone());
//! }
//! # Ok(())
//! # }
//! ```

use crate::Error;
use crate::bindings::imports::hookrun::host::binary_cache;
use crate::error::host;
use crate::object_store::Compression;

/// Paths that are stored in the same form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Full paths of valid store paths.
    pub paths: Vec<String>,
    /// The compression of the NARs.
    pub compression: Compression,
    /// The compression level; if it is `None`, the default of the format is used.
    pub level: Option<i32>,
    /// The service's name of the storage class of the NARs, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// Tags of the NARs.
    pub tags: Vec<(String, String)>,
}

/// What holds for all paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The keys that sign. A narinfo that exists gets the signatures that it lacks.
    pub keys: Vec<String>,
    /// Whether a path may be uploaded that has no signature and no content address.
    pub allow_unsigned: bool,
    /// Whether references that are neither uploaded nor in another cache may be missing.
    pub missing_references: bool,
    /// The header `Cache-Control` of the NARs, which never change.
    pub cache_control: Option<String>,
    /// Whether to write a listing of the files of each path (`.ls`).
    pub listings: bool,
    /// Whether to write an index of the debug information in each path.
    pub debug_info: bool,
    /// The compression of listings, which is stated as `Content-Encoding`: none or zstd.
    pub listing_compression: Compression,
    /// `Priority` in the `nix-cache-info` of a new cache.
    pub priority: Option<u32>,
    /// `WantMassQuery` in the `nix-cache-info` of a new cache.
    pub want_mass_query: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            allow_unsigned: false,
            missing_references: false,
            cache_control: None,
            listings: false,
            debug_info: false,
            listing_compression: Compression::None,
            priority: None,
            want_mass_query: true,
        }
    }
}

/// A path that was not uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The store path.
    pub path: String,
    /// The reason.
    pub error: Error,
}

/// The result of [`push`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The number of paths, each once.
    pub paths: u64,
    /// The number of paths that were uploaded.
    pub uploaded: u64,
    /// The stored size of their NARs, in bytes.
    pub file_bytes: u64,
    /// The size of their NARs, in bytes.
    pub nar_bytes: u64,
    /// The number of paths that the cache had already.
    pub present: u64,
    /// The number of these whose narinfo got another signature.
    pub signed: u64,
    /// The number of uploaded paths that have no signature and no content address.
    pub unsigned: u64,
    /// The number of present paths that have other contents in the cache, and were left alone.
    pub different: u64,
    /// The first paths that were not uploaded. If the service has failed, which ends the call, the
    /// first of them has its error.
    pub failures: Vec<Failure>,
}

/// Uploads the paths of `groups` to the cache in the object store `store`. `elsewhere` are paths
/// that other caches have, so that this cache need not have them.
///
/// # Errors
/// The call is not granted, a path has no signature, or the cache cannot be used. Nothing was
/// uploaded. Later failures are in the report.
pub fn push(
    store: &str,
    settings: &Settings,
    groups: &[Group],
    elsewhere: &[String],
) -> Result<Report, Error> {
    let settings = binary_cache::Settings {
        keys: settings.keys.clone(),
        allow_unsigned: settings.allow_unsigned,
        missing_references: settings.missing_references,
        cache_control: settings.cache_control.clone(),
        listings: settings.listings,
        debug_info: settings.debug_info,
        listing_compression: settings.listing_compression.as_str().to_owned(),
        priority: settings.priority,
        want_mass_query: settings.want_mass_query,
    };
    let groups: Vec<binary_cache::Group> = groups
        .iter()
        .map(|group| binary_cache::Group {
            paths: group.paths.clone(),
            compression: group.compression.as_str().to_owned(),
            level: group.level,
            storage_class: group.storage_class.clone(),
            tags: group.tags.clone(),
        })
        .collect();
    let report =
        host!("binary-cache.push", binary_cache::push(store, &settings, &groups, elsewhere))?;
    let failures = report.failures.into_iter();
    Ok(Report {
        paths: report.paths,
        uploaded: report.uploaded,
        file_bytes: report.file_bytes,
        nar_bytes: report.nar_bytes,
        present: report.present,
        signed: report.signed,
        unsigned: report.unsigned,
        different: report.different,
        failures: failures
            .map(|failed| Failure { path: failed.path, error: failed.error.into() })
            .collect(),
    })
}
