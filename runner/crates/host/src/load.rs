//! From a table of the configuration to a plugin that can run, in stages that are types: an
//! [`Artifact`] was read and checked without running or compiling anything, a [`ReadyPlugin`] has
//! its native code open, a [`LinkedPlugin`] is mapped with everything linked. Only the last one
//! runs ([`super::run`]). A process puts up its wall ([`crate::wall`]) after the second.
//!
//! Bytes of a component are read here and handed on, never understood: what they are, a contained
//! process has found out ([`super::examine`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::component::InstancePre;

use super::artifact::{self, Cache, Code, Leftovers, Origin};
use super::bindings::exports::hookrun::{builder_selection, diff, post_build};
use super::bundled;
use super::compile::{CompileError, Compiler};
use super::engine::Runtime;
use super::error::PluginError;
use super::examine::{ConfigKey, ExamineError, Examined, Verdict, Violation};
use super::host_call::RunState;
use super::metadata::{Description, Metadata};
use super::verdicts::{Stamp, Verdicts};
use hookrun_capability::PluginContext;
use hookrun_capability::grants;
use hookrun_capability::grants::{Defined, Effective, Missing, beyond_policy};
use hookrun_config::{self as config, Config, ConfigError, Limit, PluginSource};
use hookrun_nix::dirs::{self, Dirs};
use hookrun_nix::event::HookKind;

/// The largest component that is read; the largest known toolchain (Python) makes 18 MiB.
const MAX_COMPONENT: u64 = 256 << 20;
/// How jsonschema 0.4x ends a message about a missing key.
const MISSING_KEY: &str = "is a required property";

/// A plugin that was read and checked: it is a component, it has the hooks, it accepts its
/// configuration, and everything it wants is granted.
#[derive(Debug)]
pub struct Artifact {
    component: Component,
    description: Description,
    keys: Vec<ConfigKey>,
    hooks: Vec<HookKind>,
    context: Arc<PluginContext>,
}

impl Artifact {
    /// Checks what was found out about `plugin` against its table.
    fn checked(
        component: Component,
        verdict: Verdict,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<Self, PluginError> {
        let name = plugin.name.as_str();
        let error = |keys: &[&str], message: String| {
            PluginError::Config(plugin_error(config, name, keys, &message))
        };
        let source = &plugin.source;
        let Verdict { description, keys, violation, schema_problem, sample: _ } = verdict;
        let hooks = hooks(plugin, &description).map_err(|message| error(&["hooks"], message))?;
        if let Some(problem) = schema_problem {
            return Err(error(&["source"], format!("{source} {problem}")));
        }
        if let Some(Violation { keys: at, message }) = violation {
            let at: Vec<&str> =
                ["config"].into_iter().chain(at.iter().map(String::as_str)).collect();
            let known = known_keys(&keys);
            let fix = if message.ends_with(MISSING_KEY) { "add" } else { "change" };
            let message = format!("{}: {message}; {fix} it{known}", at.join("."));
            return Err(PluginError::Table(plugin_error(config, name, &at, &message)));
        }
        let policy = hooks.contains(&HookKind::BuilderSelection);
        let mut wants = description.metadata.wants.clone();
        let never = wants.required_beyond_policy();
        if description.exports == [HookKind::BuilderSelection] && !never.is_empty() {
            return Err(error(
                &["source"],
                format!(
                    "{source} requires {}, which a policy of builder selection never gets; its author must remove it from the plugin's `wants`",
                    never.join(", ")
                ),
            ));
        }
        if policy && hooks.len() == 1 {
            wants = wants.of_policy();
        }
        if policy && !beyond_policy(&plugin.grant).is_empty() {
            return Err(error(
                &["grant"],
                too_much_for_policy(name, &hooks, &beyond_policy(&plugin.grant)),
            ));
        }
        let mut effective = Effective::decide(&wants, &plugin.grant, defined(config))
            .map_err(|missing| error(&["grant"], ungranted(name, &missing, config)))?;
        effective.policy = policy;
        let context = PluginContext {
            plugin: plugin.clone(),
            config_file: config.path.clone(),
            config_json: plugin.config.to_string(),
            wants,
            effective,
        };
        Ok(Self { component, description, keys, hooks, context: Arc::new(context) })
    }

    /// What it says about itself, and what its bytes say.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The hooks it serves: those of the configuration, by default all it exports.
    pub fn hooks(&self) -> &[HookKind] {
        &self.hooks
    }

    /// What it has: wanted and granted.
    pub fn effective(&self) -> &grants::Effective {
        &self.context.effective
    }

    /// The keys of its configuration, one level deep.
    pub fn keys(&self) -> &[ConfigKey] {
        &self.keys
    }

    /// The component.
    pub fn component(&self) -> &Component {
        &self.component
    }
}

fn plugin_error(config: &Config, name: &str, keys: &[&str], message: &str) -> ConfigError {
    let keys: Vec<&str> = ["plugins", name].iter().chain(keys).copied().collect();
    config.error(&keys, format!("plugin `{name}`: {message}"))
}

/// The bytes of a component.
#[derive(Debug)]
pub struct Component {
    wasm: Cow<'static, [u8]>,
    digest: String,
    /// The file that it was read from; none if it is bundled, or was changed meanwhile.
    stamp: Option<Stamp>,
}

impl Component {
    /// Reads it.
    ///
    /// # Errors
    /// A fragment that names the file.
    pub fn read(source: &PluginSource) -> Result<Self, String> {
        let (wasm, stamp) = read(source)?;
        Ok(Self { digest: artifact::digest(&wasm), wasm, stamp })
    }

    /// SHA-256, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How many bytes it has.
    pub fn length(&self) -> usize {
        self.wasm.len()
    }
}

/// The bytes of a component, and where they were.
fn read(source: &PluginSource) -> Result<(Cow<'static, [u8]>, Option<Stamp>), String> {
    match source {
        PluginSource::Bundled(name) => {
            bundled::component(name).map(|wasm| (Cow::Borrowed(wasm), None)).ok_or_else(|| {
                format!(
                    "no plugin `{name}` is bundled; {}",
                    config::suggestion(name, config::bundled::NAMES.iter().copied())
                )
            })
        }
        PluginSource::File(path) => {
            let shown = path.display();
            let failed = |error: &std::io::Error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("there is no file {shown}; correct `source`")
                }
                _ => format!(
                    "{shown} cannot be read ({error}); make it readable for the user that runs plugins"
                ),
            };
            // Opening a FIFO must not wait for somebody to write.
            let mut file = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|error| failed(&error))?;
            let found = file.metadata().map_err(|error| failed(&error))?;
            if !found.is_file() {
                return Err(format!("{shown} is not a regular file; correct `source`"));
            }
            let length = found.len();
            if length > MAX_COMPONENT {
                return Err(format!(
                    "{shown} has {length} bytes; at most {MAX_COMPONENT} are read"
                ));
            }
            let mut wasm = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            file.by_ref()
                .take(MAX_COMPONENT)
                .read_to_end(&mut wasm)
                .map_err(|error| failed(&error))?;
            let (before, after) = (Stamp::of(path, &found), file.metadata());
            let unchanged = after.is_ok_and(|after| Stamp::of(path, &after) == before);
            Ok((Cow::Owned(wasm), unchanged.then_some(before)))
        }
    }
}

fn hooks(plugin: &config::Plugin, description: &Description) -> Result<Vec<HookKind>, String> {
    if let Some(missing) = plugin.hooks.iter().find(|hook| !description.exports.contains(hook)) {
        let has: Vec<String> =
            description.exports.iter().map(|hook| format!("\"{hook}\"")).collect();
        return Err(format!("it has no hook `{missing}`; write `hooks = [{}]`", has.join(", ")));
    }
    let hooks =
        if plugin.hooks.is_empty() { description.exports.clone() } else { plugin.hooks.clone() };
    if plugin.gate && !hooks.contains(&HookKind::PostBuild) {
        return Err("only a plugin with the hook `post-build` can be a gate; remove `gate = true`"
            .to_owned());
    }
    Ok(hooks)
}

/// `; known keys: a, b`, if the schema names its keys.
fn known_keys(keys: &[ConfigKey]) -> String {
    let keys: Vec<&str> = keys.iter().map(|key| key.key.as_str()).collect();
    if keys.is_empty() { String::new() } else { format!(" (known keys: {})", keys.join(", ")) }
}

/// What is missing, and the lines to write where the table of the grants is, or where it has to be.
fn ungranted(plugin: &str, missing: &[Missing], config: &Config) -> String {
    let quoted = |words: Vec<&str>| {
        words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    };
    let table = ["plugins", plugin, "grant"];
    let place = match config.exact_line_of(&table) {
        Some(line) => format!("{}:{line}", config.path.display()),
        None => format!("{} (there is no such table yet)", config.path.display()),
    };
    format!(
        "it wants {} and has no grant for that; write {} under [plugins.{plugin}.grant] in {place}",
        quoted(missing.iter().map(|missing| missing.interface).collect()),
        quoted(missing.iter().map(|missing| missing.line.as_str()).collect()),
    )
}

/// A policy is granted what policies do not get.
fn too_much_for_policy(plugin: &str, hooks: &[HookKind], granted: &[&str]) -> String {
    let quoted = |words: &mut dyn Iterator<Item = &str>| {
        words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    };
    let others: Vec<&str> = hooks
        .iter()
        .filter(|hook| **hook != HookKind::BuilderSelection)
        .map(|hook| hook.as_str())
        .collect();
    let granted = quoted(&mut granted.iter().copied());
    let instead = if others.is_empty() {
        format!("remove {granted} under [plugins.{plugin}.grant]")
    } else {
        format!(
            "write `hooks = [\"builder-selection\"]` and remove {granted} under [plugins.{plugin}.grant], and give {} a table with a name \
             of its own",
            quoted(&mut others.into_iter())
        )
    };
    format!("it serves `builder-selection`, where `state` is all that can be granted; {instead}")
}

fn defined(config: &Config) -> Defined<'_> {
    Defined {
        object_store: config.object_stores.keys().next().map(String::as_str),
        signing: config.signing_keys.keys().next().map(String::as_str),
        mail: config.mail.keys().next().map(String::as_str),
    }
}

/// What is known of a plugin without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The hooks that it exports.
    Exports(Vec<HookKind>),
    /// It is not a plugin.
    Refused,
    /// Nothing yet, or nothing since its file was changed.
    Nothing,
}

/// What loads plugins: the engines and the caches of a process.
pub struct Host {
    cache: Cache,
    verdicts: Verdicts,
    compiler: Compiler,
    /// By stack size, which is a setting of the engine.
    runtimes: Mutex<BTreeMap<u64, Arc<Runtime>>>,
}

impl Host {
    /// A host with its cache in `dirs`. Starts nothing yet.
    pub fn new(dirs: &Dirs, compiler: Compiler) -> Self {
        let (cache, verdicts) = (Cache::new(dirs.artifacts()), Verdicts::new(dirs.verdicts()));
        Self { cache, verdicts, compiler, runtimes: Mutex::default() }
    }

    /// A host for plugins under test, whose cache is none of the installation's.
    pub fn for_tests(compiler: Compiler) -> Self {
        let (cache, verdicts) =
            (Cache::new(dirs::test_artifacts()), Verdicts::new(dirs::test_verdicts()));
        Self { cache, verdicts, compiler, runtimes: Mutex::default() }
    }

    /// Where compiled plugins are.
    pub fn artifacts(&self) -> &Path {
        self.cache.directory()
    }

    /// Removes what `leftovers` does not keep of compiled plugins other than these, which are all
    /// that are configured.
    pub fn prune<'a>(
        &self,
        configured: impl IntoIterator<Item = &'a ReadyPlugin>,
        leftovers: Leftovers,
    ) {
        let (mut artifacts, mut verdicts) = (BTreeSet::new(), BTreeSet::new());
        for ready in configured {
            let Artifact { component, context, .. } = &ready.artifact;
            artifacts.insert(artifact::key(ready.runtime.engine(), &component.wasm));
            verdicts.insert(Verdicts::key(&component.digest, &context.plugin.config));
            verdicts.extend(component.stamp.as_ref().map(|stamp| stamp.name().to_owned()));
        }
        self.cache.prune(&artifacts, leftovers);
        self.verdicts.prune(&verdicts, leftovers);
    }

    /// What was found out about a component for this `config` table, now or before.
    ///
    /// # Errors
    /// There is nobody to find it out.
    pub fn examine(
        &self,
        component: &Component,
        table: &serde_json::Value,
    ) -> Result<Examined, ExamineError> {
        let key = Verdicts::key(&component.digest, table);
        let examined = match self.verdicts.get(&key) {
            Some(examined) => examined,
            None => {
                let examined = self.compiler.examine(&component.wasm, table)?;
                self.verdicts.put(&key, &examined);
                examined
            }
        };
        if let Some(stamp) = &component.stamp
            && self.verdicts.digest(stamp).as_ref() != Some(&component.digest)
        {
            self.verdicts.remember(stamp, &component.digest);
        }
        Ok(examined)
    }

    /// What is known of `plugin` without opening it.
    pub fn known(&self, plugin: &config::Plugin) -> Known {
        let digest = match &plugin.source {
            PluginSource::Bundled(name) => bundled::component(name).map(artifact::digest),
            PluginSource::File(path) => std::fs::metadata(path)
                .ok()
                .and_then(|found| self.verdicts.digest(&Stamp::of(path, &found))),
        };
        let examined =
            digest.and_then(|digest| self.verdicts.get(&Verdicts::key(&digest, &plugin.config)));
        match examined {
            Some(Ok(verdict)) => Known::Exports(verdict.description.exports),
            Some(Err(_)) => Known::Refused,
            None => Known::Nothing,
        }
    }

    /// Reads and checks `plugin`. Compiles nothing.
    ///
    /// # Errors
    /// The first thing that is wrong, with the line of the configuration.
    pub fn open(&self, plugin: &config::Plugin, config: &Config) -> Result<Artifact, PluginError> {
        let source = &plugin.source;
        let error = |message: String| plugin_error(config, &plugin.name, &["source"], &message);
        let component =
            Component::read(source).map_err(|message| PluginError::Config(error(message)))?;
        let examined = self.examine(&component, &plugin.config).map_err(|problem| {
            let why = error(format!("{source} {problem}"));
            match problem {
                ExamineError::NotAhead => PluginError::NotAhead(why),
                ExamineError::System(_) => PluginError::Config(why),
            }
        })?;
        let verdict = examined
            .map_err(|message| PluginError::Config(error(format!("{source} {message}"))))?;
        Artifact::checked(component, verdict, plugin, config)
    }

    /// Reads, checks and makes ready `plugin`. Maps nothing and starts no thread: what a process
    /// does before its wall stands.
    ///
    /// # Errors
    /// What is wrong with the plugin, its grants or its configuration.
    pub fn prepare(
        &self,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<ReadyPlugin, PluginError> {
        self.ready(self.open(plugin, config)?, config)
    }

    /// Makes ready all plugins of `config`, and removes what is left of plugins of before from the
    /// cache; nothing if one of them cannot be read, because what belongs to it is then not known.
    pub fn prepare_all(&self, config: &Config) -> Vec<Result<ReadyPlugin, PluginError>> {
        let all: Vec<_> =
            config.plugins.values().map(|plugin| self.prepare(plugin, config)).collect();
        if all.iter().all(Result::is_ok) {
            self.prune(all.iter().flatten(), artifact::OF_CONFIGURATION);
        }
        all
    }

    /// Finds or makes the native code of a checked plugin.
    ///
    /// # Errors
    /// The component is invalid, or takes more than it may to compile.
    pub fn ready(&self, artifact: Artifact, config: &Config) -> Result<ReadyPlugin, PluginError> {
        let begun = Instant::now();
        let plugin = &artifact.context.plugin;
        let name = plugin.name.as_str();
        let runtime = self.runtime(plugin.limits.get(Limit::Stack))?;
        let wasm = &artifact.component.wasm;
        let compile = || self.compiler.compile(runtime.engine(), plugin, wasm);
        let patience = self.compiler.patience(plugin);
        let code = self.cache.code(runtime.engine(), wasm, patience, compile);
        let code = code.map_err(|error| {
            let whole = |message: String| config.error(&["plugins", name, "source"], message);
            let (keys, message) = match error {
                CompileError::NotAhead => {
                    return PluginError::NotAhead(whole(format!(
                        "plugin `{name}`: {} {error}",
                        plugin.source
                    )));
                }
                CompileError::Component(what) => (
                    "source",
                    format!(
                        "plugin `{name}`: {} {what}; build it with the SDK of this release",
                        plugin.source
                    ),
                ),
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

    /// Maps and links a plugin that is ready.
    ///
    /// # Errors
    /// It imports what this release does not offer, or exports a hook of another type.
    pub fn link(ready: ReadyPlugin, config: &Config) -> Result<LinkedPlugin, PluginError> {
        let begun = Instant::now();
        let ReadyPlugin {
            artifact:
                Artifact { component: Component { digest, .. }, description, keys: _, hooks, context },
            code,
            runtime,
            time,
        } = ready;
        let name = context.plugin.name.as_str();
        let error = |what: &str, error: &wasmtime::Error| {
            let cause = format!("{error:#}").replace('\n', " ");
            let message = format!(
                "plugin `{name}`: {} {what} ({cause}); build it with the SDK of this release",
                context.plugin.source
            );
            PluginError::Config(config.error(&["plugins", name, "source"], message))
        };
        runtime.start().map_err(|cause| PluginError::Engine(format!("{cause:#}")))?;
        let component =
            code.map(runtime.engine()).map_err(|cause| error("cannot be mapped", &cause))?;
        let instance = runtime
            .linker()
            .instantiate_pre(&component)
            .map_err(|cause| error("imports what this hookrun does not offer", &cause))?;
        let exports = Exports::find(&hooks, &instance)
            .map_err(|cause| error("exports a hook of another type", &cause))?;
        Ok(LinkedPlugin {
            digest,
            metadata: description.metadata,
            hooks,
            context,
            instance,
            exports,
            origin: code.origin,
            load_time: time + begun.elapsed(),
            runtime,
        })
    }

    /// All stages at once, for a process that has its wall or needs none.
    ///
    /// # Errors
    /// As [`Host::prepare`] and [`Host::link`].
    pub fn load(
        &self,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<LinkedPlugin, PluginError> {
        Self::link(self.prepare(plugin, config)?, config)
    }

    fn runtime(&self, stack: u64) -> Result<Arc<Runtime>, PluginError> {
        let mut runtimes = self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtimes.get(&stack) {
            return Ok(Arc::clone(runtime));
        }
        let runtime = Arc::new(
            Runtime::new(stack).map_err(|error| PluginError::Engine(format!("{error:#}")))?,
        );
        runtimes.insert(stack, Arc::clone(&runtime));
        Ok(runtime)
    }
}

/// A plugin whose native code is open, and not mapped yet.
pub struct ReadyPlugin {
    artifact: Artifact,
    code: Code,
    runtime: Arc<Runtime>,
    time: Duration,
}

impl ReadyPlugin {
    /// What was read and checked.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }

    /// Was the code found or compiled?
    pub fn origin(&self) -> &Origin {
        &self.code.origin
    }
}

/// Where the hooks are in an instance; those that are not served are none.
pub(super) struct Exports {
    pub(super) post_build: Option<post_build::post_build::GuestIndices>,
    pub(super) diff: Option<diff::diff::GuestIndices>,
    pub(super) builder_selection: Option<builder_selection::builder_selection::GuestIndices>,
}

impl Exports {
    fn find(hooks: &[HookKind], instance: &InstancePre<RunState>) -> wasmtime::Result<Self> {
        let has = |hook| hooks.contains(&hook);
        Ok(Self {
            post_build: has(HookKind::PostBuild)
                .then(|| post_build::post_build::GuestIndices::new(instance))
                .transpose()?,
            diff: has(HookKind::Diff)
                .then(|| diff::diff::GuestIndices::new(instance))
                .transpose()?,
            builder_selection: has(HookKind::BuilderSelection)
                .then(|| builder_selection::builder_selection::GuestIndices::new(instance))
                .transpose()?,
        })
    }
}

/// A plugin that can run. Each run has a fresh instance; runs share nothing but the code.
pub struct LinkedPlugin {
    pub(super) context: Arc<PluginContext>,
    pub(super) instance: InstancePre<RunState>,
    pub(super) exports: Exports,
    pub(super) load_time: Duration,
    metadata: Metadata,
    digest: String,
    hooks: Vec<HookKind>,
    origin: Origin,
    /// Keeps the engine, and with it the epoch thread, as long as a plugin can run.
    #[expect(dead_code, reason = "held, not read")]
    runtime: Arc<Runtime>,
}

impl std::fmt::Debug for LinkedPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkedPlugin")
            .field("name", &self.name())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl LinkedPlugin {
    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.context.plugin.name
    }

    /// The hooks it serves.
    pub fn hooks(&self) -> &[HookKind] {
        &self.hooks
    }

    /// What it says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// SHA-256 of the component, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Was it mapped or compiled?
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How long compiling or mapping, and linking, took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// What it has: wanted and granted.
    pub fn effective(&self) -> &grants::Effective {
        &self.context.effective
    }
}
