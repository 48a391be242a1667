//! The queue's [`Executor`] over the plugins of the configuration.
//!
//! Made once by a worker; the plugins are loaded then. One that does not load is still asked for: its tasks end as *refused*, with the
//! reason, and stay until a later worker finds it mended. So a wrong grant or a missing file costs no event.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::{Host, LinkedPlugin};
use crate::capability::Services;
use crate::config::{Config, Plugin, Retry, suggestion};
use crate::dirs::Dirs;
use crate::event::{Event, HookEvent, HookKind};
use crate::nix::database::Database;
use crate::outcome::RunReport;
use crate::queue::worker::Executor;

/// The plugins of one configuration, loaded.
pub struct PluginExecutor {
    plugins: BTreeMap<String, Entry>,
    services: Services,
}

struct Entry {
    settings: Plugin,
    /// What is linked, or why it is not: one line.
    linked: Result<LinkedPlugin, String>,
}

impl PluginExecutor {
    /// Loads every plugin that spooled events may want.
    pub fn new(config: &Config, dirs: &Dirs) -> Self {
        let host = Host::new(dirs);
        let services = Services::new(config, dirs);
        let mut plugins = BTreeMap::new();
        for (name, settings) in &config.plugins {
            // A gate has run inside the hook, where it can refuse; running it again could change nothing.
            let queued = settings.hooks.is_empty() || settings.hooks.iter().any(|hook| *hook != HookKind::BuilderSelection);
            if settings.gate || !queued {
                continue;
            }
            let linked = host.load(settings, config).map_err(|error| error.to_string()).and_then(|linked| {
                usable(&services, config, &linked)?;
                Ok(linked)
            });
            plugins.insert(name.clone(), Entry { settings: settings.clone(), linked });
        }
        Self { plugins, services }
    }
}

impl Executor for PluginExecutor {
    fn wanted(&self, event: &Event) -> Vec<String> {
        let wants = |entry: &&Entry| {
            let Entry { settings, linked } = entry;
            serves(settings, linked.as_ref().ok(), event.kind()) && admits(settings, event)
        };
        self.plugins.values().filter(wants).map(|entry| entry.settings.name.clone()).collect()
    }

    fn retry(&self, plugin: &str) -> Retry {
        self.plugins.get(plugin).map(|entry| entry.settings.retry.clone()).unwrap_or_default()
    }

    fn run<'a>(&'a self, plugin: &'a str, event: &'a Event, attempt: u32) -> BoxFuture<'a, RunReport> {
        Box::pin(async move {
            match self.plugins.get(plugin) {
                Some(Entry { linked: Ok(linked), .. }) => linked.run_event(&self.services, event, attempt).await,
                Some(Entry { linked: Err(reason), .. }) => RunReport::refused(reason),
                None => {
                    let hint = suggestion(plugin, self.plugins.keys().map(String::as_str));
                    RunReport::refused(format!(
                        "plugin `{plugin}` is no longer in the configuration; {hint}, or add [plugins.{plugin}] again"
                    ))
                }
            }
        })
    }
}

/// Can the keys, stores and credentials that the plugin has be used? A missing key is put right by the operator, not by time: it refuses the task,
/// which keeps it, instead of failing it, which would end in a dead letter.
fn usable(services: &Services, config: &Config, linked: &LinkedPlugin) -> Result<(), String> {
    let wrong = |keys: &[&str], message: &str| config.error(keys, message).to_string();
    for key in &linked.effective().signing {
        let used = services.signing_keys().public_key(key);
        used.map_err(|error| wrong(&["signing-keys", key, "file"], &error.message))?;
    }
    for store in &linked.effective().object_store {
        services.object_stores().check(store).map_err(|error| wrong(&["object-stores", store], &error.message))?;
    }
    for grant in &linked.effective().http {
        services.http().check(linked.name(), grant).map_err(|(keys, message)| {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            wrong(&keys, &message)
        })?;
    }
    Ok(())
}

/// Does the plugin serve this hook? One that did not load may have any that the configuration does not exclude.
pub fn serves(settings: &Plugin, linked: Option<&LinkedPlugin>, hook: HookKind) -> bool {
    (settings.hooks.is_empty() || settings.hooks.contains(&hook))
        && linked.is_none_or(|linked| linked.hooks().contains(&hook))
}

/// Does the event pass the plugin's filter?
pub fn admits(settings: &Plugin, event: &Event) -> bool {
    settings.filter.admits_name(event.name()) && settings.filter.max_nar_size.is_none_or(|max| nar_size(event) <= max)
}

/// The size of all valid outputs together, in bytes; 0 if Nix's database does not tell, so that no event is lost for it.
fn nar_size(event: &Event) -> u64 {
    let HookEvent::PostBuild(build) = &event.hook else { return 0 };
    let paths: Vec<String> = build.outputs.iter().map(|output| output.path.clone()).collect();
    let infos = Database::open(&event.nix).and_then(|database| database.path_infos(&paths));
    infos.map_or(0, |infos| infos.into_iter().flatten().map(|info| info.nar_size).sum())
}
