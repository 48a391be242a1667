//! The configuration as serde reads it, and the checks that turn it into a [`Config`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::http::RawHttpCredential;
use super::resources::RawResources;
use super::{
    Builders, Config, ConfigError, Filter, Grant, Limit, Limits, Lines, Mail, ObjectStore, Plugin,
    PluginSource, Priority, Retry, SigningKey, Start, TaskOrder, Worker, nearest, suggestion,
};
use hookrun_nix::event::HookKind;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    worker: RawWorker,
    builders: RawBuilders,
    plugins: BTreeMap<String, RawPlugin>,
    object_stores: BTreeMap<String, ObjectStore>,
    signing_keys: BTreeMap<String, SigningKey>,
    mail: BTreeMap<String, Mail>,
    http_credentials: BTreeMap<String, RawHttpCredential>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawWorker {
    start: Start,
    priority: Priority,
    concurrency: Option<usize>,
    idle_exit: Option<Time>,
    keep: Option<Time>,
    roots_max_age: Option<Time>,
    roots_max_size: Option<Size>,
    max_events_per_user: Option<u64>,
    max_bytes_per_user: Option<Size>,
    user: Option<String>,
    require_sandbox: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawBuilders {
    connect_timeout: Option<Time>,
    retry_after: Option<Time>,
    early_accept: Option<bool>,
    max_waiting: Option<u32>,
    share_connections: Option<bool>,
    machine_resources: BTreeMap<String, toml::Table>,
    feature_resources: BTreeMap<String, toml::Table>,
    shared_resources: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawPlugin {
    source: String,
    #[serde(default)]
    hooks: Vec<HookKind>,
    #[serde(default)]
    filter: RawFilter,
    #[serde(default)]
    retry: RawRetry,
    concurrency: Option<usize>,
    order: Option<TaskOrder>,
    #[serde(default)]
    gate: bool,
    #[serde(default)]
    config: toml::Table,
    #[serde(default)]
    grant: Grant,
    #[serde(default)]
    limits: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawFilter {
    name: Option<String>,
    max_nar_size: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawRetry {
    attempts: Option<u32>,
    min_delay: Option<Time>,
    max_delay: Option<Time>,
    give_up_after: Option<Time>,
}

/// A duration such as `"15m"`.
#[derive(Debug, Clone, Copy)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!(
                "`{text}` is no duration ({error}); write for example \"15m\""
            ))
        })
    }
}

/// For the field of a type that is deserialised as it is.
pub(super) fn duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    Time::deserialize(deserializer).map(|time| Some(time.0))
}

/// A size such as `"2GiB"` or a number of bytes.
#[derive(Debug, Clone, Copy)]
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        Limit::Memory.parse(&value).map(Self).map_err(|_| {
            serde::de::Error::custom(format!("{value} is no size; write for example \"2GiB\""))
        })
    }
}

pub(super) fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let raw: Raw = toml::from_str(text).map_err(|error| syntax_error(path, text, &error))?;
    let lines = Lines::read(text);
    let mut config = Config {
        path: path.to_owned(),
        embedded: false,
        is_last: false,
        text: text.to_owned(),
        worker: worker(raw.worker),
        builders: Builders::default(),
        plugins: BTreeMap::new(),
        object_stores: raw.object_stores,
        signing_keys: raw.signing_keys,
        mail: raw.mail,
        http_credentials: BTreeMap::new(),
        lines,
    };
    config.builders = builders(&config, raw.builders)?;
    for (name, raw) in raw.http_credentials {
        let credential = raw
            .checked(&name)
            .map_err(|(key, message)| config.error(&["http-credentials", &name, key], message))?;
        config.http_credentials.insert(name, credential);
    }
    for (name, raw) in raw.plugins {
        let plugin = plugin(&config, &name, raw)?;
        config.plugins.insert(name, plugin);
    }
    if config.worker.concurrency == 0 {
        return Err(config.error(
            &["worker", "concurrency"],
            "`concurrency` must be at least 1; write `concurrency = 4`",
        ));
    }
    super::paths::anchor(&mut config);
    Ok(config)
}

fn worker(raw: RawWorker) -> Worker {
    let RawWorker {
        start,
        priority,
        concurrency,
        idle_exit,
        keep,
        roots_max_age,
        roots_max_size,
        max_events_per_user,
        max_bytes_per_user,
        user,
        require_sandbox,
    } = raw;
    let default = Worker::default();
    Worker {
        start,
        priority,
        concurrency: concurrency.unwrap_or(default.concurrency),
        idle_exit: idle_exit.map_or(default.idle_exit, |time| time.0),
        keep: keep.map_or(default.keep, |time| time.0),
        roots_max_age: roots_max_age.map_or(default.roots_max_age, |time| time.0),
        roots_max_size: roots_max_size.map_or(default.roots_max_size, |size| size.0),
        max_events_per_user: max_events_per_user.unwrap_or(default.max_events_per_user),
        max_bytes_per_user: max_bytes_per_user.map_or(default.max_bytes_per_user, |size| size.0),
        user,
        require_sandbox,
    }
}

fn builders(config: &Config, raw: RawBuilders) -> Result<Builders, ConfigError> {
    let RawBuilders {
        connect_timeout,
        retry_after,
        early_accept,
        max_waiting,
        share_connections,
        machine_resources: machines,
        feature_resources: features,
        shared_resources: shared,
    } = raw;
    let resources =
        RawResources { machines, features, shared }.checked().map_err(|(keys, message)| {
            let keys: Vec<&str> =
                std::iter::once("builders").chain(keys.iter().map(String::as_str)).collect();
            config.error(&keys, message)
        })?;
    let default = Builders::default();
    Ok(Builders {
        connect_timeout: connect_timeout.map_or(default.connect_timeout, |time| time.0),
        retry_after: retry_after.map_or(default.retry_after, |time| time.0),
        early_accept: early_accept.unwrap_or(default.early_accept),
        max_waiting: max_waiting.unwrap_or(default.max_waiting),
        share_connections: share_connections.unwrap_or(default.share_connections),
        resources,
    })
}

fn plugin(config: &Config, name: &str, raw: RawPlugin) -> Result<Plugin, ConfigError> {
    let RawPlugin {
        source,
        hooks,
        filter,
        retry,
        concurrency,
        order,
        gate,
        config: table,
        grant,
        limits,
    } = raw;
    let error = |keys: &[&str], message: String| {
        let keys: Vec<&str> = ["plugins", name].iter().chain(keys).copied().collect();
        Err(config.error(&keys, message))
    };
    if name.is_empty()
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        || name.starts_with('.')
    {
        return error(
            &[],
            format!(
                "the plugin name `{name}` may have letters, digits, `-`, `_` and `.` only; rename the table"
            ),
        );
    }
    let source = match source.strip_prefix("bundled:") {
        Some(bundled) => {
            if !crate::bundled::NAMES.contains(&bundled) {
                return error(
                    &["source"],
                    format!(
                        "no plugin `{bundled}` is bundled; {}",
                        suggestion(bundled, crate::bundled::NAMES.iter().copied())
                    ),
                );
            }
            PluginSource::Bundled(bundled.to_owned())
        }
        None if source.contains("://") => {
            return error(
                &["source"],
                format!("source `{source}` is not supported; write a path or `bundled:NAME`"),
            );
        }
        None => PluginSource::File(config.path.parent().unwrap_or(Path::new("/")).join(&source)),
    };
    if gate && !hooks.is_empty() && !hooks.contains(&HookKind::PostBuild) {
        return error(
            &["gate"],
            "only a post-build plugin can be a gate; remove `gate = true`".to_owned(),
        );
    }
    let known = |names: &mut dyn Iterator<Item = &String>| {
        names.map(String::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let credentials: Vec<String> =
        grant.http.iter().filter_map(|grant| grant.credential.clone()).collect();
    for (key, section, wanted, defined) in [
        (
            "object-store",
            "object-stores",
            &grant.object_store,
            known(&mut config.object_stores.keys()),
        ),
        ("signing", "signing-keys", &grant.signing, known(&mut config.signing_keys.keys())),
        ("mail", "mail", &grant.mail, known(&mut config.mail.keys())),
        ("http", "http-credentials", &credentials, known(&mut config.http_credentials.keys())),
    ] {
        if let Some(unknown) = wanted.iter().find(|name| !defined.contains(name)) {
            let hint = match nearest(unknown, defined.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "add that table".to_owned(),
            };
            let table = toml_key(unknown);
            return error(
                &["grant", key],
                format!(
                    "the grant `{key}` of plugin `{name}` names `{unknown}`, and there is no [{section}.{table}]; {hint}"
                ),
            );
        }
    }
    let mut checked = Limits::default();
    for (key, value) in &limits {
        let Some(limit) = Limit::ALL.iter().copied().find(|limit| limit.key() == key) else {
            let hint = suggestion(key, Limit::ALL.iter().map(|limit| limit.key()));
            return error(&["limits", key], format!("unknown limit `{key}`; {hint}"));
        };
        match limit.parse(value) {
            Ok(value) => checked.set(limit, value),
            Err(message) => return error(&["limits", key], message),
        }
    }
    let default = Retry::default();
    let retry = Retry {
        attempts: retry.attempts.unwrap_or(default.attempts),
        min_delay: retry.min_delay.map_or(default.min_delay, |time| time.0),
        max_delay: retry.max_delay.map_or(default.max_delay, |time| time.0),
        give_up_after: retry.give_up_after.map_or(default.give_up_after, |time| time.0),
    };
    if concurrency == Some(0) {
        return error(
            &["concurrency"],
            "`concurrency` must be at least 1; write `concurrency = 1`".to_owned(),
        );
    }
    if retry.attempts == 0 {
        return error(
            &["retry", "attempts"],
            "`attempts` counts the first one too; write at least `attempts = 1`".to_owned(),
        );
    }
    Ok(Plugin {
        name: name.to_owned(),
        source,
        hooks,
        filter: Filter { name: filter.name, max_nar_size: filter.max_nar_size.map(|size| size.0) },
        retry,
        concurrency,
        order,
        gate,
        config: serde_json::to_value(table).unwrap_or_default(),
        grant,
        limits: checked,
    })
}

/// A table key as TOML writes it: quoted unless bare.
fn toml_key(key: &str) -> String {
    if !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
        key.to_owned()
    } else {
        format!("\"{key}\"")
    }
}

/// One line for what `toml` says in several, with a suggestion for unknown keys.
fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().replace('\n', " ");
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let message = match (message.starts_with("unknown field"), words.split_first()) {
        (true, Some((unknown, known))) => {
            format!("unknown key `{unknown}`; {}", suggestion(unknown, known.iter().copied()))
        }
        _ if message.starts_with("unknown variant") => match words.split_first() {
            Some((unknown, known)) => {
                format!("unknown value `{unknown}`; {}", suggestion(unknown, known.iter().copied()))
            }
            None => message,
        },
        _ if message.starts_with("missing field") => {
            format!("{}; add it to this table", message.replace("missing field", "missing key"))
        }
        _ => message,
    };
    ConfigError {
        path: path.to_owned(),
        line: error.span().map(|span| line_at(text, span.start)),
        message,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

impl Lines {
    fn read(text: &str) -> Self {
        let mut lines = Self::default();
        if let Ok(table) = DeTable::parse(text) {
            lines.walk(text, table.get_ref(), &mut Vec::new());
        }
        lines
    }

    fn walk(&mut self, text: &str, table: &DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.0.insert(path.clone(), line_at(text, key.span().start));
            if let DeValue::Table(inner) = value.get_ref() {
                self.walk(text, inner, path);
            }
            path.pop();
        }
    }
}
