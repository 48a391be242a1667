//! A plugin that was read and checked without running or compiling anything. This is the first
//! stage between a table of the configuration and a plugin that can run; [`crate::host`] creates
//! it.
//!
//! The bytes of a component are read here and passed on, but never parsed: a contained process
//! examines them ([`crate::examine`]).

use std::borrow::Cow;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use super::bundled;
use super::compiled_cache;
use super::error::PluginError;
use super::examination_cache::FileStamp;
use super::examine::{ConfigKey, Examination, Violation};
use super::metadata::Description;
use hookrun_capability::PluginContext;
use hookrun_capability::grants::{Effective, Missing};
use hookrun_config::{self as config, Config, ConfigError, PluginSource};
use hookrun_nix::event::HookKind;

/// Maximum size of a component in bytes. The largest known toolchain (Python) produces 18 MiB.
const MAX_COMPONENT: u64 = 256 << 20;

/// A plugin that was read and checked: it is a component, it exports the configured hooks, its
/// schema allows its configuration, and everything it requires is granted.
#[derive(Debug)]
pub struct Artifact {
    pub(crate) component: Component,
    pub(crate) description: Description,
    keys: Vec<ConfigKey>,
    pub(crate) hooks: Vec<HookKind>,
    pub(crate) context: Arc<PluginContext>,
}

impl Artifact {
    /// Compares the result of the examination with the table of `plugin`.
    pub(crate) fn checked(
        component: Component,
        examination: Examination,
        plugin: &config::Plugin,
        config: &Config,
    ) -> Result<Self, PluginError> {
        let name = plugin.name.as_str();
        let error = |keys: &[&str], message: String| {
            PluginError::Config(plugin_error(config, name, keys, &message))
        };
        let source = &plugin.source;
        let Examination { description, keys, violation, schema_problem, sample: _ } = examination;
        let hooks = hooks(plugin, &description).map_err(|message| error(&["hooks"], message))?;
        if let Some(problem) = schema_problem {
            return Err(error(&["source"], format!("{source} {problem}")));
        }
        if let Some(Violation { keys: at, message }) = violation {
            let at: Vec<&str> =
                ["config"].into_iter().chain(at.iter().map(String::as_str)).collect();
            let message = format!("{}: {message}", at.join("."));
            return Err(PluginError::Table(plugin_error(config, name, &at, &message)));
        }
        let policy = hooks.contains(&HookKind::BuilderSelection);
        let mut wants = description.metadata.wants.clone();
        let never: Vec<String> =
            wants.required_beyond_policy().map(|it| format!("`{}`", it.name())).collect();
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
        let beyond: Vec<&str> = plugin.grant.beyond_policy().iter().map(|it| it.name()).collect();
        if policy && !beyond.is_empty() {
            return Err(error(&["grant"], too_much_for_policy(name, &hooks, &beyond)));
        }
        let mut effective = Effective::decide(&wants, &plugin.grant, config)
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

    /// Returns the metadata, exports and imports of the component.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Returns the hooks that it serves: the configured ones, or all that it exports by default.
    pub fn hooks(&self) -> &[HookKind] {
        &self.hooks
    }

    /// Returns the capabilities that are both wanted and granted.
    pub fn effective(&self) -> &Effective {
        &self.context.effective
    }

    /// Returns the top-level keys of its configuration.
    pub fn keys(&self) -> &[ConfigKey] {
        &self.keys
    }

    /// Returns the component.
    pub fn component(&self) -> &Component {
        &self.component
    }
}

pub(crate) fn plugin_error(
    config: &Config,
    name: &str,
    keys: &[&str],
    message: &str,
) -> ConfigError {
    let keys: Vec<&str> = ["plugins", name].iter().chain(keys).copied().collect();
    config.error(&keys, format!("plugin `{name}`: {message}"))
}

/// The bytes of a component.
#[derive(Debug)]
pub struct Component {
    pub(crate) wasm: Cow<'static, [u8]>,
    pub(crate) digest: String,
    /// The file that it was read from. `None` if it is bundled or was changed while it was read.
    pub(crate) stamp: Option<FileStamp>,
}

impl Component {
    /// Reads the component of `source`.
    ///
    /// # Errors
    /// Returns a fragment that names the file.
    pub fn read(source: &PluginSource) -> Result<Self, String> {
        let (wasm, stamp) = read(source)?;
        Ok(Self { digest: compiled_cache::digest(&wasm), wasm, stamp })
    }

    /// Returns the SHA-256 digest in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns the length in bytes.
    pub fn length(&self) -> usize {
        self.wasm.len()
    }
}

/// Reads the bytes of a component, and the stamp of the file that holds them.
fn read(source: &PluginSource) -> Result<(Cow<'static, [u8]>, Option<FileStamp>), String> {
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
            // Opening a FIFO must not block until a writer appears.
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
            let (before, after) = (FileStamp::of(path, &found), file.metadata());
            let unchanged = after.is_ok_and(|after| FileStamp::of(path, &after) == before);
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

/// Describes the missing grants and the lines to write, with the place of the grant table.
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

/// Describes grants that policies of builder selection cannot get.
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
