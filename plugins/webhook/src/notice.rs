//! The values of an event that a message can contain.

use hookrun_sdk::{Error, diff, post_build};
use serde_json::Value;

/// The placeholders of `template`, as in `docs/configuration.md`.
pub const PLACEHOLDERS: [&str; 11] = [
    "id",
    "hook",
    "status",
    "name",
    "host",
    "time",
    "drv-path",
    "outputs",
    "paths",
    "files",
    "differences",
];
/// The number of files that `{differences}` names. A chat message is not a report.
const SHOWN_FILES: usize = 5;
/// The number of differences in the JSON format.
const MAX_DIFFERENCES: usize = 100;

/// An event in the words of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The event's id, the same for each attempt.
    pub id: String,
    /// Whether two builds had different results.
    pub differs: bool,
    /// The event as JSON, the same for each attempt.
    pub event: Value,
    values: Vec<(&'static str, String)>,
}

impl Notice {
    /// Describes a build.
    ///
    /// # Errors
    /// The event cannot be written as JSON.
    pub fn built(event: &post_build::Event) -> Result<Self, Error> {
        let join = |items: Vec<&str>, by| items.join(by);
        let outputs = || event.outputs.iter();
        Ok(Self {
            id: event.id.clone(),
            differs: false,
            event: json(event)?,
            values: vec![
                ("id", event.id.clone()),
                ("hook", "post-build".to_owned()),
                ("status", "built".to_owned()),
                ("name", event.name.clone()),
                ("host", event.host.clone()),
                ("time", time(event.time_ms)),
                ("drv-path", event.drv_path.clone()),
                ("outputs", join(outputs().map(|output| output.name.as_str()).collect(), ", ")),
                ("paths", join(outputs().map(|output| output.path.as_str()).collect(), " ")),
            ],
        })
    }

    /// Describes an output that is not reproducible.
    ///
    /// # Errors
    /// The event cannot be written as JSON.
    pub fn differs(event: &diff::Event) -> Result<Self, Error> {
        // A file has several records, one after the other.
        let mut files: Vec<(&str, Vec<&str>)> = Vec::new();
        for difference in &event.differences {
            match files.last_mut() {
                Some((path, kinds)) if *path == difference.path => {
                    if !kinds.contains(&difference.kind.as_str()) {
                        kinds.push(&difference.kind);
                    }
                }
                _ => files.push((&difference.path, vec![&difference.kind])),
            }
        }
        let mut lines: Vec<String> = files
            .iter()
            .take(SHOWN_FILES)
            .map(|(path, kinds)| {
                let path = if path.is_empty() { "the output itself" } else { path };
                format!("{}: {}", visible(path), kinds.join(", "))
            })
            .collect();
        if files.len() > SHOWN_FILES {
            lines.push(format!("and {} more", files.len() - SHOWN_FILES));
        }
        let least = if event.complete { "" } else { "at least " };
        let noun = if files.len() == 1 { "file" } else { "files" };
        let mut shortened = json(event)?;
        if let Some(Value::Array(differences)) = shortened.get_mut("differences") {
            differences.truncate(MAX_DIFFERENCES);
        }
        Ok(Self {
            id: event.id.clone(),
            differs: true,
            event: shortened,
            values: vec![
                ("id", event.id.clone()),
                ("hook", "diff".to_owned()),
                ("status", "not reproducible".to_owned()),
                ("name", event.name.clone()),
                ("host", event.host.clone()),
                ("time", time(event.time_ms)),
                ("drv-path", event.drv_path.clone()),
                ("outputs", event.output_name.clone()),
                ("paths", format!("{} {}", event.previous_path, event.current_path)),
                ("files", format!("{least}{} {noun}", files.len())),
                ("differences", lines.join("\n")),
            ],
        })
    }

    /// Returns the value of a placeholder; empty if this kind of event has none.
    pub fn value(&self, placeholder: &str) -> &str {
        let known = self.values.iter().find(|(name, _)| *name == placeholder);
        known.map_or("", |(_, value)| value)
    }
}

/// Returns the event without the number of the attempt, so that a message is the same each time.
fn json(event: &impl serde::Serialize) -> Result<Value, Error> {
    let mut value = serde_json::to_value(event)
        .map_err(|error| Error::permanent(format!("the event cannot be written: {error}")))?;
    if let Some(keys) = value.as_object_mut() {
        keys.remove("attempt");
    }
    Ok(value)
}

/// Returns the time as `2026-11-28T03:00:00Z`.
fn time(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Replaces characters that change how the text around them is shown.
fn visible(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn build() -> post_build::Event {
        let output = |name: &str, path: &str| post_build::Output {
            name: name.to_owned(),
            path: format!("/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-{path}"),
        };
        post_build::Event {
            id: "01941fd6-4c00-7000-8000-000000000001".to_owned(),
            time_ms: 1_795_376_832_000,
            host: "builder1".to_owned(),
            store_dir: "/nix/store".to_owned(),
            drv_path: "/nix/store/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv".to_owned(),
            name: "greet-2.12".to_owned(),
            outputs: vec![output("out", "greet-2.12"), output("dev", "greet-2.12-dev")],
            attempt: 3,
            details: Vec::new(),
        }
    }

    pub(crate) fn difference(files: &[&str]) -> diff::Event {
        let build = build();
        let path = build.outputs[0].path.clone();
        diff::Event {
            id: build.id,
            time_ms: build.time_ms,
            host: build.host,
            store_dir: build.store_dir,
            drv_path: build.drv_path,
            name: build.name,
            output_name: "out".to_owned(),
            current_path: format!("{path}.check"),
            previous_path: path,
            differences: files
                .iter()
                .map(|path| diff::Difference {
                    path: (*path).to_owned(),
                    kind: "content".to_owned(),
                    previous: "\"a\"".to_owned(),
                    current: "\"b\"".to_owned(),
                    offset: Some(0),
                    details: Vec::new(),
                })
                .collect(),
            complete: true,
            compared_files: 10,
            compared_bytes: 100,
            attempt: 1,
            details: Vec::new(),
        }
    }

    #[test]
    fn each_placeholder_has_a_value_for_a_difference() {
        let notice = Notice::differs(&difference(&["bin/greet", "bin/greet"])).unwrap();
        for name in PLACEHOLDERS {
            assert_ne!(notice.value(name), "", "{name}");
        }
        assert_eq!(notice.value("files"), "1 file");
        assert_eq!(notice.value("time"), "2026-11-22T19:47:12Z");
    }

    #[test]
    fn many_files_are_counted_and_hidden_characters_are_replaced() {
        let names: Vec<String> = (0..150).map(|n| format!("f{n}\n\u{202e}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let event = diff::Event { complete: false, ..difference(&names) };
        let notice = Notice::differs(&event).unwrap();
        assert_eq!(notice.value("files"), "at least 150 files");
        let lines: Vec<&str> = notice.value("differences").lines().collect();
        assert_eq!(lines[0], "f0\u{fffd}\u{fffd}: content");
        assert_eq!(lines[5..], ["and 145 more"]);
        assert_eq!(notice.event["differences"].as_array().unwrap().len(), 100);
    }

    #[test]
    fn the_event_is_the_same_for_each_attempt() {
        let again = post_build::Event { attempt: 4, ..build() };
        assert_eq!(Notice::built(&build()).unwrap(), Notice::built(&again).unwrap());
    }
}
