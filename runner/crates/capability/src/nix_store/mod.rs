//! The `nix-store` interface: read access to Nix's database and the store, within the scope of the
//! grant.
//!
//! A [`Backend`] reads; [`StoreScopeCheck`] decides whether a path is in scope before the backend
//! is asked about it. Reading files blocks, so it runs on blocking threads. A path from a guest is
//! never opened as it is: a store path has to be in scope, and a path below it is opened from the
//! store path's own descriptor without following symlinks ([`real`]).

pub mod real;
pub mod sample;
mod tree;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{CapabilityError, Service};
use crate::{EventScope, PluginContext};
use hookrun_config::{Config, Limit, Plugin, StoreScope};
use hookrun_nix::database::PathInfo;
use hookrun_nix::derivation::Derivation;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;
use hookrun_nix::is_store_path;
use hookrun_nix::nar::{Expected, Source};

/// One valid path that was opened for serialisation. The guest has a handle to it; the bytes stay
/// in the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nar {
    /// The source of the bytes.
    pub source: Source,
    /// The hash and size in Nix's database.
    pub expected: Expected,
}

/// One entry of a directory in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The file name. Bytes that are not UTF-8 are shown as U+FFFD.
    pub name: String,
    /// `regular`, `directory` or `symlink`.
    pub kind: &'static str,
    /// The size in bytes, for regular files.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
    /// The target, for symlinks.
    pub target: Option<String>,
}

/// The function to which [`Backend::each_info`] passes infos.
pub type TakeInfo<'a> = dyn FnMut(Option<PathInfo>) -> Result<(), CapabilityError> + 'a;

/// A readable store: that of a Nix, or an invented one for tests. Every method may block.
pub trait Backend: std::fmt::Debug + Send + Sync {
    /// Passes the infos of `paths` to `take` one after another, in order, with `None` for a path
    /// that is not valid.
    ///
    /// # Errors
    /// Returns an error if the database cannot be read, or the first error of `take`.
    fn each_info(&self, paths: &[String], take: &mut TakeInfo<'_>) -> Result<(), CapabilityError>;
    /// Returns the closure of `paths`, references before referrers.
    ///
    /// # Errors
    /// Returns an error if the database cannot be read.
    fn closure(&self, paths: &[String]) -> Result<Vec<String>, CapabilityError>;
    /// Returns the derivation at `path`, if its file is within `budget`.
    ///
    /// # Errors
    /// Returns an error if it does not exist or cannot be parsed, or `limit`.
    fn derivation(&self, path: &str, budget: &mut Budget) -> Result<Derivation, CapabilityError>;
    /// Returns the entries of the directory `relative` below the store path `path`, sorted by name,
    /// if their names and targets are within `budget`.
    ///
    /// # Errors
    /// Returns an error if it does not exist or is not a directory, or `limit`.
    fn list_directory(
        &self,
        path: &str,
        relative: &str,
        budget: &mut Budget,
    ) -> Result<Vec<DirectoryEntry>, CapabilityError>;
    /// Reads at most `length` bytes of the regular file `relative` below `path`, from `offset`.
    ///
    /// # Errors
    /// Returns an error if it does not exist or is not a regular file.
    fn read_file(
        &self,
        path: &str,
        relative: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, CapabilityError>;
    /// Returns the source of the serialisation of `path`.
    fn nar_source(&self, path: &str) -> Source;
}

/// The stores of an installation: one for each Nix that calls hooks, or an invented one for tests.
#[derive(Debug)]
pub struct NixStores {
    place: StoreBackend,
    reaches: Mutex<BTreeMap<Vec<String>, Arc<HashSet<String>>>>,
}

#[derive(Debug)]
enum StoreBackend {
    Real,
    Sample(Arc<sample::Sample>),
}

/// Maximum number of cached closures for scope checks, about as many as tasks run at once. A plugin
/// that signs a thousand paths one by one does not read a thousand closures. The cache is emptied
/// when it is full.
const MAX_REACHES: usize = 64;

impl Service for NixStores {
    fn configure(_config: &Config, _dirs: &Dirs) -> Self {
        Self::real()
    }

    fn in_memory(_config: &Config, _dirs: &Dirs) -> Self {
        Self::sample()
    }
}

impl NixStores {
    pub fn real() -> Self {
        Self { place: StoreBackend::Real, reaches: Mutex::default() }
    }

    /// Creates one invented store, for `hookrun test`.
    pub fn sample() -> Self {
        Self {
            place: StoreBackend::Sample(Arc::new(sample::Sample::new())),
            reaches: Mutex::default(),
        }
    }

    /// Returns the store of the Nix with these directories.
    pub fn at(&self, dirs: &NixDirs) -> Arc<dyn Backend> {
        match &self.place {
            StoreBackend::Real => Arc::new(real::Real::new(dirs.clone())),
            StoreBackend::Sample(sample) => sample.clone(),
        }
    }

    fn known_reach(&self, roots: &[String]) -> Option<Arc<HashSet<String>>> {
        self.reaches.lock().unwrap_or_else(PoisonError::into_inner).get(roots).cloned()
    }

    fn keep_reach(&self, roots: &[String], reach: HashSet<String>) {
        let mut reaches = self.reaches.lock().unwrap_or_else(PoisonError::into_inner);
        if reaches.len() >= MAX_REACHES {
            reaches.clear();
        }
        reaches.insert(roots.to_vec(), Arc::new(reach));
    }
}

/// Checks which paths one run may access: its scope, the store, and the text of refusals.
#[derive(Debug)]
pub struct StoreScopeCheck {
    stores: Arc<NixStores>,
    backend: Arc<dyn Backend>,
    granted: StoreScope,
    scope: EventScope,
    plugin: String,
    config_file: std::path::PathBuf,
}

impl StoreScopeCheck {
    /// Creates the check for a run of `plugin` for the event with `scope`.
    pub fn new(stores: &Arc<NixStores>, plugin: &PluginContext, scope: &EventScope) -> Self {
        Self {
            backend: stores.at(&scope.nix),
            stores: stores.clone(),
            granted: plugin.effective.nix_store,
            scope: scope.clone(),
            plugin: plugin.plugin.name.clone(),
            config_file: plugin.config_file.clone(),
        }
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Checks that all `paths` are in scope.
    ///
    /// # Errors
    /// Returns `invalid` for a string that is not a store path, and `denied` for a path out of
    /// scope.
    pub fn check(&self, paths: &[String]) -> Result<(), CapabilityError> {
        let store_dir = self.scope.nix.store.to_string_lossy();
        if let Some(odd) = paths.iter().find(|path| !is_store_path(&store_dir, path)) {
            let odd = odd.escape_debug();
            return Err(CapabilityError::invalid(format!(
                "`{odd}` is not a store path; write a full path below {store_dir}"
            )));
        }
        let outside =
            |path: &&String| self.granted == StoreScope::None || !self.scope.paths.contains(path);
        let Some(first) = paths.iter().find(outside) else { return Ok(()) };
        if self.granted != StoreScope::Closure {
            return Err(self.denied(first));
        }
        let within =
            |reach: &HashSet<String>| paths.iter().filter(outside).all(|path| reach.contains(path));
        if self.stores.known_reach(&self.scope.paths).is_some_and(|reach| within(&reach)) {
            return Ok(());
        }
        // The closure is not cached or has grown: outputs may have become valid.
        let closure = self.backend.closure(&self.scope.paths)?;
        let reach: HashSet<String> = closure.into_iter().collect();
        let refused = paths
            .iter()
            .filter(outside)
            .find(|path| !reach.contains(*path))
            .map(|path| self.denied(path));
        self.stores.keep_reach(&self.scope.paths, reach);
        refused.map_or(Ok(()), Err)
    }

    /// Checks that all `paths` are in scope and that the whole closure is granted.
    ///
    /// # Errors
    /// Returns `denied` unless the whole closure is granted.
    pub fn check_closure(&self, paths: &[String]) -> Result<(), CapabilityError> {
        self.check(paths)?;
        match (self.granted, paths.first()) {
            (StoreScope::Closure, _) | (_, None) => Ok(()),
            (_, Some(path)) => Err(CapabilityError::denied(format!(
                "plugin `{}` may not read the closure of {path}: its grant covers only the event's outputs; {}",
                self.plugin,
                self.fix()
            ))),
        }
    }

    /// Returns the info of `path`, which must be in scope and valid.
    ///
    /// # Errors
    /// Returns the errors of [`StoreScopeCheck::each_valid`].
    pub fn valid(&self, path: &str) -> Result<PathInfo, CapabilityError> {
        let mut found = None;
        self.each_valid(&[path.to_owned()], |info| {
            found = Some(info);
            Ok(())
        })?;
        found.ok_or_else(|| not_valid(path))
    }

    /// Passes the infos of `paths`, which must be in scope and valid, to `take` one after another,
    /// in order.
    ///
    /// # Errors
    /// Returns the errors of [`StoreScopeCheck::check`], `not-found` for a path that is not valid,
    /// and errors of `take`.
    pub fn each_valid(
        &self,
        paths: &[String],
        mut take: impl FnMut(PathInfo) -> Result<(), CapabilityError>,
    ) -> Result<(), CapabilityError> {
        self.check(paths)?;
        let mut asked = paths.iter();
        self.backend.each_info(paths, &mut |info| {
            let path = asked.next().map(String::as_str).unwrap_or_default();
            take(info.ok_or_else(|| not_valid(path))?)
        })
    }

    fn denied(&self, path: &str) -> CapabilityError {
        let Self { plugin, granted, .. } = self;
        CapabilityError::denied(match granted {
            StoreScope::Closure => {
                format!(
                    "plugin `{plugin}` may not read {path}: it is not in the closure of this event's derivation and outputs"
                )
            }
            StoreScope::Outputs | StoreScope::None => {
                format!(
                    "plugin `{plugin}` may not read {path}: it is not among this event's outputs; {}",
                    self.fix()
                )
            }
        })
    }

    fn fix(&self) -> String {
        format!(
            "write `nix-store = \"closure\"` under [plugins.{}.grant] in {}, and in the plugin's `wants`",
            self.plugin,
            self.config_file.display()
        )
    }
}

fn not_valid(path: &str) -> CapabilityError {
    CapabilityError::not_found(format!(
        "{path} is not valid in the Nix store; it was garbage-collected, or never built"
    ))
}

/// The number of bytes that a growing answer may still take of the limit of one host call, so that
/// a host function never collects more than it may return.
#[derive(Debug)]
pub struct Budget {
    left: u64,
    refusal: String,
}

impl Budget {
    /// Returns the budget of the host call `call` of `plugin`.
    pub fn new(plugin: &PluginContext, call: &str) -> Self {
        let Plugin { name, limits, .. } = &plugin.plugin;
        let most = limits.get(Limit::CallBytes);
        Self { left: most, refusal: Limit::CallBytes.reached_in(name, most, None, Some(call)) }
    }

    /// Returns a budget of `most` bytes outside of a run.
    pub fn of(most: u64) -> Self {
        Self { left: most, refusal: format!("more than {most} bytes") }
    }

    /// Takes `bytes` from the budget.
    ///
    /// # Errors
    /// Returns `limit` if less than `bytes` are left.
    pub fn take(&mut self, bytes: u64) -> Result<(), CapabilityError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| CapabilityError::limit(self.refusal.clone()))?;
        Ok(())
    }
}

/// Runs `work`, which reads files, on a blocking thread.
///
/// # Errors
/// Returns the errors of `work`.
pub async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, CapabilityError> + Send + 'static,
) -> Result<R, CapabilityError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(CapabilityError::transient(format!("nix-store: the read was cut off ({error})")))
        }
    }
}

#[cfg(test)]
mod tests;
