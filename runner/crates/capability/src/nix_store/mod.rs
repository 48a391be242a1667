//! The `nix-store` interface: read access to Nix's database and the store, within the scope of the
//! grant.
//!
//! A [`Backend`] answers; [`StoreScopeCheck`] decides whether a path is in scope, before any
//! backend is asked about it. All of it blocks on files, so it runs on blocking threads. Paths are
//! never opened by what a guest says alone: a store path has to be in scope, and what is below it
//! is opened from its own descriptor without following a symlink ([`real`]).

pub mod real;
pub mod sample;
mod tree;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{CapabilityError, Service};
use crate::{PluginContext, Scope};
use hookrun_config::{Config, Limit, Plugin, StoreScope};
use hookrun_nix::database::PathInfo;
use hookrun_nix::derivation::Derivation;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;
use hookrun_nix::is_store_path;
use hookrun_nix::nar::{Expected, Source};

/// One valid path, opened for serialisation. The guest holds a handle to it; the bytes stay in the
/// host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nar {
    /// Where the bytes come from.
    pub source: Source,
    /// What Nix's database says that they are.
    pub expected: Expected,
}

/// One entry of a directory in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// File name; bytes that are not UTF-8 are shown as U+FFFD.
    pub name: String,
    /// `regular`, `directory` or `symlink`.
    pub kind: &'static str,
    /// Bytes, for regular files.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
    /// For symlinks.
    pub target: Option<String>,
}

/// What [`Backend::each_info`] gives infos to.
pub type TakeInfo<'a> = dyn FnMut(Option<PathInfo>) -> Result<(), CapabilityError> + 'a;

/// What answers: the store of a Nix, or a made-up one. Every method may block.
pub trait Backend: std::fmt::Debug + Send + Sync {
    /// Gives the infos of `paths` to `take`, one after another in their order; none for a path that
    /// is not valid.
    ///
    /// # Errors
    /// The database cannot be read, or an error of `take`, which ends it.
    fn each_info(&self, paths: &[String], take: &mut TakeInfo<'_>) -> Result<(), CapabilityError>;
    /// The paths of everything that `paths` reach, references before referrers.
    ///
    /// # Errors
    /// The database cannot be read.
    fn closure(&self, paths: &[String]) -> Result<Vec<String>, CapabilityError>;
    /// The derivation at `path`, if its file is within `budget`.
    ///
    /// # Errors
    /// It is not there or does not parse, or `limit`.
    fn derivation(&self, path: &str, budget: &mut Budget) -> Result<Derivation, CapabilityError>;
    /// The entries of the directory `relative` below the store path `path`, sorted by name, if
    /// their names and targets are within `budget`.
    ///
    /// # Errors
    /// It is not there, or not a directory, or `limit`.
    fn list_directory(
        &self,
        path: &str,
        relative: &str,
        budget: &mut Budget,
    ) -> Result<Vec<Entry>, CapabilityError>;
    /// At most `length` bytes of the regular file `relative` below `path`, from `offset`.
    ///
    /// # Errors
    /// It is not there, or no regular file.
    fn read_file(
        &self,
        path: &str,
        relative: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, CapabilityError>;
    /// Where the serialisation of `path` comes from.
    fn nar_source(&self, path: &str) -> Source;
}

/// The stores of an installation: one for each Nix that calls, or a made-up one.
#[derive(Debug)]
pub struct NixStores {
    place: Place,
    reaches: Mutex<BTreeMap<Vec<String>, Arc<HashSet<String>>>>,
}

#[derive(Debug)]
enum Place {
    Real,
    Sample(Arc<sample::Sample>),
}

/// Closures kept for scope checks, so that a plugin that signs a thousand paths one by one does not
/// cost a thousand closures. As many as tasks run at once, more or less; the oldest is forgotten by
/// emptying the table.
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
        Self { place: Place::Real, reaches: Mutex::default() }
    }

    /// One made-up store, for `hookrun test`.
    pub fn sample() -> Self {
        Self { place: Place::Sample(Arc::new(sample::Sample::new())), reaches: Mutex::default() }
    }

    /// The store of the Nix with these directories.
    pub fn at(&self, dirs: &NixDirs) -> Arc<dyn Backend> {
        match &self.place {
            Place::Real => Arc::new(real::Real::new(dirs.clone())),
            Place::Sample(sample) => sample.clone(),
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

/// Which paths one run may ask about: its scope, the store behind it, and the words for a refusal.
#[derive(Debug)]
pub struct StoreScopeCheck {
    stores: Arc<NixStores>,
    backend: Arc<dyn Backend>,
    granted: StoreScope,
    scope: Scope,
    plugin: String,
    config_file: std::path::PathBuf,
}

impl StoreScopeCheck {
    /// The reach of a run of `plugin` for the event that `scope` is of.
    pub fn new(stores: &Arc<NixStores>, plugin: &PluginContext, scope: &Scope) -> Self {
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

    /// Refuses the first of `paths` that is not in scope.
    ///
    /// # Errors
    /// `invalid` for a string that is not a store path, `denied` for a path out of scope.
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
        // Not known, or grown since: outputs may have become valid.
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

    /// Refuses what needs more than the outputs.
    ///
    /// # Errors
    /// `denied` unless the whole closure is granted.
    pub fn check_closure(&self, paths: &[String]) -> Result<(), CapabilityError> {
        self.check(paths)?;
        match (self.granted, paths.first()) {
            (StoreScope::Closure, _) | (_, None) => Ok(()),
            (_, Some(path)) => Err(CapabilityError::denied(format!(
                "plugin `{}` may not ask what {path} reaches: it may read the event's outputs only; {}",
                self.plugin,
                self.fix()
            ))),
        }
    }

    /// What the database says of `path`, which is in scope and valid.
    ///
    /// # Errors
    /// As [`StoreScopeCheck::each_valid`].
    pub fn valid(&self, path: &str) -> Result<PathInfo, CapabilityError> {
        let mut found = None;
        self.each_valid(&[path.to_owned()], |info| {
            found = Some(info);
            Ok(())
        })?;
        found.ok_or_else(|| not_valid(path))
    }

    /// Gives what the database says of `paths`, all of which are in scope and valid, to `take`, one
    /// after another in their order.
    ///
    /// # Errors
    /// As [`StoreScopeCheck::check`]; `not-found` for a path that is not valid; an error of `take`.
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
                    "plugin `{plugin}` may not read {path}: this event's derivation and outputs do not reach it"
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

/// What an answer that grows may still have of the bytes that one host call may move, so that no
/// more is gathered than may cross.
#[derive(Debug)]
pub struct Budget {
    left: u64,
    refusal: String,
}

impl Budget {
    /// That of the host call `call` of `plugin`.
    pub fn new(plugin: &PluginContext, call: &str) -> Self {
        let Plugin { name, limits, .. } = &plugin.plugin;
        let most = limits.get(Limit::CallBytes);
        Self { left: most, refusal: Limit::CallBytes.reached_in(name, most, None, Some(call)) }
    }

    /// At most `most` bytes, outside of a run.
    pub fn of(most: u64) -> Self {
        Self { left: most, refusal: format!("more than {most} bytes") }
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// `limit`: there are not so many left.
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
/// Those of `work`.
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
