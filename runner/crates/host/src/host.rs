//! Loads plugins in stages that are types: an [`Artifact`] was read and checked, a [`ReadyPlugin`]
//! has its native code open, and a [`LinkedPlugin`] is mapped and linked. Only the last one can run
//! ([`crate::run`]). A process restricts itself ([`crate::wall`]) after the second stage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::artifact::{Artifact, Component, plugin_error};
use super::bundled;
use super::compile::{CompileError, Compiler};
use super::compiled_cache::{self, Cache, Leftovers, Origin};
use super::engine::{Allocation, Runtime};
use super::error::PluginError;
use super::examination_cache::{ExaminationCache, FileStamp};
use super::examine::{ExamineError, Examined};
use super::linked::{LinkedPlugin, ReadyPlugin};
use hookrun_config::{self as config, Config, Limit, Limits, PluginSource};
use hookrun_nix::dirs::{self, Dirs};
use hookrun_nix::event::HookKind;

/// The facts about a plugin that are known without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The hooks that it exports.
    Exports(Vec<HookKind>),
    /// It is not a plugin.
    Refused,
    /// Nothing is known, or its file was changed since.
    Nothing,
}

/// Loads plugins: the engines and the caches of a process.
pub struct Host {
    cache: Cache,
    examinations: ExaminationCache,
    compiler: Compiler,
    allocation: Allocation,
    /// Engines by their settings: the stack size and the allocation.
    runtimes: Mutex<BTreeMap<(u64, Allocation), Arc<Runtime>>>,
}

impl Host {
    /// Returns a host with its cache in `dirs`. Starts nothing yet.
    pub fn new(dirs: &Dirs, compiler: Compiler) -> Self {
        let (cache, examinations) =
            (Cache::new(dirs.artifacts()), ExaminationCache::new(dirs.verdicts()));
        let allocation = Allocation::OnDemand;
        Self { cache, examinations, compiler, allocation, runtimes: Mutex::default() }
    }

    /// Returns a host with a pool for `runs` concurrent runs, for a process that only runs plugins.
    #[must_use]
    pub fn with_pool(self, runs: usize) -> Self {
        Self { allocation: Allocation::Pooled(runs), ..self }
    }

    /// Returns a host for plugins under test, whose cache is separate from that of the
    /// installation.
    pub fn for_tests(compiler: Compiler) -> Self {
        let (cache, examinations) =
            (Cache::new(dirs::test_artifacts()), ExaminationCache::new(dirs::test_verdicts()));
        let allocation = Allocation::OnDemand;
        Self { cache, examinations, compiler, allocation, runtimes: Mutex::default() }
    }

    /// Returns the directory of compiled plugins.
    pub fn artifacts(&self) -> &Path {
        self.cache.directory()
    }

    /// Removes compiled plugins that are neither `configured` nor kept by `leftovers`.
    pub fn prune<'a>(
        &self,
        configured: impl IntoIterator<Item = &'a ReadyPlugin>,
        leftovers: Leftovers,
    ) {
        let (mut artifacts, mut examinations) = (BTreeSet::new(), BTreeSet::new());
        for ready in configured {
            let Artifact { component, context, .. } = &ready.artifact;
            artifacts.insert(compiled_cache::key(ready.runtime.engine(), &component.digest));
            examinations.insert(ExaminationCache::key(&component.digest, &context.plugin.config));
            examinations.extend(component.stamp.as_ref().map(|stamp| stamp.name().to_owned()));
        }
        self.cache.prune(&artifacts, leftovers);
        self.examinations.prune(&examinations, leftovers);
    }

    /// Returns the result of examining a component for this `config` table, from the cache if it is
    /// there.
    ///
    /// # Errors
    /// Returns an error if the component has to be examined and that is not possible here.
    pub fn examine(
        &self,
        component: &Component,
        table: &serde_json::Value,
    ) -> Result<Examined, ExamineError> {
        let key = ExaminationCache::key(&component.digest, table);
        let examined = match self.examinations.get(&key) {
            Some(examined) => examined,
            None => {
                let examined = self.compiler.examine(&component.wasm, table)?;
                self.examinations.put(&key, &examined);
                examined
            }
        };
        if let Some(stamp) = &component.stamp
            && self.examinations.digest(stamp).as_ref() != Some(&component.digest)
        {
            self.examinations.remember(stamp, &component.digest);
        }
        Ok(examined)
    }

    /// Returns the facts about `plugin` that are known without opening it.
    pub fn known(&self, plugin: &config::Plugin) -> Known {
        let digest = match &plugin.source {
            PluginSource::Bundled(name) => bundled::component(name).map(compiled_cache::digest),
            PluginSource::File(path) => std::fs::metadata(path)
                .ok()
                .and_then(|found| self.examinations.digest(&FileStamp::of(path, &found))),
        };
        let examined = digest.and_then(|digest| {
            self.examinations.get(&ExaminationCache::key(&digest, &plugin.config))
        });
        match examined {
            Some(Ok(examination)) => Known::Exports(examination.description.exports),
            Some(Err(_)) => Known::Refused,
            None => Known::Nothing,
        }
    }

    /// Reads and checks `plugin`. Compiles nothing.
    ///
    /// # Errors
    /// Returns the first problem, with the line of the configuration.
    pub fn open(&self, plugin: &config::Plugin, config: &Config) -> Result<Artifact, PluginError> {
        let source = &plugin.source;
        let error = |message: String| plugin_error(config, &plugin.name, &["source"], &message);
        let component =
            Component::read(source).map_err(|message| PluginError::Config(error(message)))?;
        let examined = self.examine(&component, &plugin.config).map_err(|problem| {
            let why = error(format!("{source} {problem}"));
            match problem {
                ExamineError::NotCompiled => PluginError::NotCompiled(why),
                ExamineError::System(_) => PluginError::Config(why),
            }
        })?;
        let examination = examined
            .map_err(|message| PluginError::Config(error(format!("{source} {message}"))))?;
        Artifact::checked(component, examination, plugin, config)
    }

    /// Reads and checks `plugin`, and finds or compiles its native code. Maps nothing and starts no
    /// thread, so that the process can still enter its sandbox.
    ///
    /// # Errors
    /// Returns an error if the plugin, its grants or its configuration are wrong.
    pub fn prepare(
        &self,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<ReadyPlugin, PluginError> {
        self.ready(self.open(plugin, config)?, config)
    }

    /// Prepares all plugins of `config`, and removes files of earlier plugins from the cache.
    /// Nothing is removed if a plugin cannot be read, because its files are not known then.
    pub fn prepare_all(&self, config: &Config) -> Vec<Result<ReadyPlugin, PluginError>> {
        let all: Vec<_> =
            config.plugins.values().map(|plugin| self.prepare(plugin, config)).collect();
        if all.iter().all(Result::is_ok) {
            self.prune(all.iter().flatten(), compiled_cache::OF_CONFIGURATION);
        }
        all
    }

    /// Finds or compiles the native code of a checked plugin.
    ///
    /// # Errors
    /// Returns an error if the component is invalid, or exceeds a limit of compilation.
    pub fn ready(&self, artifact: Artifact, config: &Config) -> Result<ReadyPlugin, PluginError> {
        let begun = Instant::now();
        let plugin = &artifact.context.plugin;
        let name = plugin.name.as_str();
        let runtime = self.runtime(&plugin.limits)?;
        let Component { wasm, digest, .. } = &artifact.component;
        let compile = || self.compiler.compile(runtime.engine(), plugin, wasm);
        let patience = self.compiler.patience(plugin);
        let code = self.cache.code(runtime.engine(), digest, patience, compile);
        let code = code.map_err(|error| {
            let whole = |message: String| config.error(&["plugins", name, "source"], message);
            let (keys, message) = match error {
                CompileError::NotCompiled => {
                    return PluginError::NotCompiled(whole(format!(
                        "plugin `{name}`: {} {error}",
                        plugin.source
                    )));
                }
                CompileError::Component(what) => {
                    ("source", format!("plugin `{name}`: {} {what}", plugin.source))
                }
                CompileError::Limit(message) => ("limits", message),
                CompileError::System(_) => {
                    ("source", format!("plugin `{name}`: {} {error}", plugin.source))
                }
            };
            PluginError::Config(config.error(&["plugins", name, keys], message))
        })?;
        if let Origin::NotKept(reason) = &code.origin {
            tracing::warn!(
                plugin = name,
                reason,
                "the compiled plugin is not kept; every start compiles it again"
            );
        }
        Ok(ReadyPlugin { artifact, code, runtime, time: begun.elapsed() })
    }

    /// Runs all stages, for a process that is in its sandbox or needs none.
    ///
    /// # Errors
    /// Returns the errors of [`Host::prepare`] and [`ReadyPlugin::link`].
    pub fn load(
        &self,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<LinkedPlugin, PluginError> {
        self.prepare(plugin, config)?.link(config)
    }

    fn runtime(&self, limits: &Limits) -> Result<Arc<Runtime>, PluginError> {
        let (stack, allocation) = (limits.get(Limit::Stack), self.allocation.for_limits(limits));
        let mut runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtimes.get(&(stack, allocation)) {
            return Ok(Arc::clone(runtime));
        }
        let runtime = Arc::new(
            Runtime::new(stack, allocation)
                .map_err(|error| PluginError::Engine(format!("{error:#}")))?,
        );
        runtimes.insert((stack, allocation), Arc::clone(&runtime));
        Ok(runtime)
    }
}
