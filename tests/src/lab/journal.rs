//! The output of `hookrun log`.

use std::collections::BTreeMap;

/// One attempt of one plugin on one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The event's id.
    pub event: String,
    /// `post-build` or `diff`.
    pub kind: String,
    /// The derivation's name.
    pub name: String,
    /// The plugin's name.
    pub plugin: String,
    /// The number of the attempt, from 1.
    pub number: u64,
    /// `done`, `permanent`, `transient`, `trapped`, `limit`, `refused` or `interrupted`.
    pub class: String,
    /// The message of the outcome.
    pub message: String,
    /// The messages that the plugin logged.
    pub log: Vec<String>,
}

impl Attempt {
    /// Reads an element of `hookrun log --format json`.
    #[track_caller]
    pub(super) fn read(value: &serde_json::Value) -> Self {
        let text = |key: &str| match value.get(key).and_then(serde_json::Value::as_str) {
            Some(text) => text.to_owned(),
            None => panic!("the output of `hookrun log` has no `{key}`: {value}"),
        };
        let log = value.get("log").and_then(serde_json::Value::as_array).into_iter().flatten();
        Self {
            event: text("event"),
            kind: text("kind"),
            name: text("name"),
            plugin: text("plugin"),
            number: value.get("number").and_then(serde_json::Value::as_u64).unwrap_or_default(),
            class: text("class"),
            message: text("message"),
            log: log.filter_map(|line| line.get("message")?.as_str().map(str::to_owned)).collect(),
        }
    }
}

/// Returns `alpha cache done` for each event and plugin, sorted: the name of the derivation, the
/// name of the plugin, and the class of the last attempt.
pub(super) fn tasks(attempts: &[Attempt]) -> Vec<String> {
    let mut last: BTreeMap<(&str, &str), &Attempt> = BTreeMap::new();
    for attempt in attempts {
        last.insert((&attempt.event, &attempt.plugin), attempt);
    }
    let mut tasks: Vec<String> = last
        .values()
        .map(|attempt| format!("{} {} {}", attempt.name, attempt.plugin, attempt.class))
        .collect();
    tasks.sort();
    tasks
}
