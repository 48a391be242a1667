//! Examines a component without running it: its metadata, and whether its schema allows a `config`
//! table. Both are untrusted data that costs time and memory to read (a JSON schema is a program),
//! so a contained process ([`super::contain`]) reads them, and the result is stored
//! ([`super::examination_cache`]). Hooks, workers and commands read only the result.
//!
//! [`super::host`] calls this module for every use of a plugin.

use std::io::{Read as _, Write as _};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compile::Compiler;
use super::config_schema;
use super::contain::{self, Bounds, ChildResult};
use super::metadata::{self, Description};
use hookrun_nix::exit_code::Exit;

/// The hidden command of the child process.
pub const COMMAND: &str = "examine-one";

/// Limit of processor time in seconds. A component of 21 MiB, larger than any known one, takes 0.1
/// s.
const PROCESSOR: u64 = 2;
/// Limit of memory in bytes, in addition to the size of the component.
const MEMORY: u64 = 256 << 20;
/// Limit of wall time. It is long, because the processor may be busy.
const TIME: Duration = Duration::from_secs(30);
/// Maximum size of the result in bytes. Metadata has at most 256 KiB.
const MAX_RESULT: u64 = 1 << 20;

/// The result of examining a component for one `config` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Examination {
    /// Its metadata without the schema, and its exports and imports.
    pub description: Description,
    /// The top-level keys of its configuration.
    pub keys: Vec<ConfigKey>,
    /// An example `config` table for tests.
    pub sample: Sample,
    /// The first part of the table that the schema does not allow.
    pub violation: Option<Violation>,
    /// The problem of its schema: a fragment with the fix for the plugin's author.
    pub schema_problem: Option<String>,
}

/// One key of a plugin's configuration, as its schema describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigKey {
    pub key: String,
    pub required: bool,
    pub default: Option<Value>,
    pub description: String,
}

/// An example `config` table that the schema probably allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sample {
    pub table: Value,
    pub from: SampleConfig,
}

/// The source of an example `config` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleConfig {
    /// The first of the schema's `examples`.
    Example,
    /// The `default` and `examples` of required properties.
    Properties,
    /// The schema has no example: the table is empty.
    Empty,
}

/// A part of a `config` table that the schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Violation {
    /// The keys that lead to the part.
    pub keys: Vec<String>,
    pub message: String,
}

/// An examination, or the reason why the component is not a plugin: a fragment with the fix for the
/// plugin's author.
pub type Examined = Result<Examination, String>;

/// The reason why a component was not examined.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// This process does not examine components, or its time is over.
    #[error(
        "is not compiled yet, and a hook does not wait for a compiler; it is being compiled now, or run `hookrun compile`"
    )]
    NotCompiled,
    /// The child process could not be started or did not finish.
    #[error("cannot be examined: {0}")]
    System(String),
}

impl From<std::io::Error> for ExamineError {
    fn from(error: std::io::Error) -> Self {
        Self::System(error.to_string())
    }
}

impl Compiler {
    /// Examines `wasm` for a `config` table.
    pub(super) fn examine(&self, wasm: &[u8], config: &Value) -> Result<Examined, ExamineError> {
        match self {
            Self::Disabled => Err(ExamineError::NotCompiled),
            Self::InProcess => Ok(examined(wasm, config)),
            Self::Contained(user) => contained(user.clone(), wasm, config, None),
            Self::Within(user, until) => contained(user.clone(), wasm, config, Some(*until)),
        }
    }
}

fn contained(
    user: Option<String>,
    wasm: &[u8],
    config: &Value,
    until: Option<Instant>,
) -> Result<Examined, ExamineError> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let time = left.map_or(TIME, |left| left.min(TIME));
    let bounds = Bounds {
        memory: MEMORY.saturating_add(wasm.len() as u64),
        processor: PROCESSOR,
        output: MAX_RESULT,
        user,
    };
    let config = config.to_string();
    let length = (config.len() as u64).to_le_bytes();
    let input = [length.as_slice(), config.as_bytes(), wasm];
    match contain::run(&[COMMAND], &bounds, &[], &input, time)? {
        ChildResult::TimeUp if time < TIME => Err(ExamineError::NotCompiled),
        ChildResult::TimeUp => Err(ExamineError::System(format!("it takes longer than {TIME:?}"))),
        ChildResult::Exited { status, output, .. } if status.success() => {
            serde_json::from_slice(&output).map_err(|error| ExamineError::System(error.to_string()))
        }
        ChildResult::Exited { status, said, .. } => failure(status, &said),
    }
}

/// Returns the meaning of a failed child process.
fn failure(status: ExitStatus, said: &str) -> Result<Examined, ExamineError> {
    use std::os::unix::process::ExitStatusExt as _;
    let too_much = |what: String| {
        Ok(Err(format!(
            "has metadata or a configuration schema that takes more than {what} to check; its \
             author must simplify it"
        )))
    };
    match status.signal() {
        Some(libc::SIGXCPU) => too_much(format!("{PROCESSOR} s of processor time")),
        // Rust's allocator aborts the process when memory is exhausted.
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => {
            too_much(format!("{} MiB of memory", MEMORY >> 20))
        }
        Some(libc::SIGXFSZ) => {
            too_much(format!("{} KiB to repeat and so too long", MAX_RESULT >> 10))
        }
        _ => Err(ExamineError::System(ChildResult::describe(status, said))),
    }
}

/// The main function of the child process. Standard input has the length of the `config` table, the
/// table and the component; the result is written to standard output.
pub fn child(bounds: &Bounds) -> Exit {
    hookrun_system::signals::unblock();
    match child_work(bounds) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // The parent process reads this.
            let _said = writeln!(std::io::stderr(), "{error}");
            Exit::Failed
        }
    }
}

fn child_work(bounds: &Bounds) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    contain::confine(bounds)?;
    let mut input = std::io::stdin().lock();
    let mut length = [0; 8];
    input.read_exact(&mut length).map_err(|error| text(&error))?;
    let mut config = Vec::new();
    let mut table = input.by_ref().take(u64::from_le_bytes(length));
    table.read_to_end(&mut config).map_err(|error| text(&error))?;
    let config = serde_json::from_slice(&config).map_err(|error| text(&error))?;
    let mut wasm = Vec::new();
    input.read_to_end(&mut wasm).map_err(|error| text(&error))?;
    let found = serde_json::to_vec(&examined(&wasm, &config)).map_err(|error| text(&error))?;
    std::io::stdout().lock().write_all(&found).map_err(|error| text(&error))
}

fn examined(wasm: &[u8], config: &Value) -> Examined {
    let mut description = metadata::describe(wasm)?;
    let schema = description.metadata.config_schema.take();
    let checked = schema.as_ref().map(|schema| config_schema::violation(schema, config));
    let (violation, schema_problem) = match checked {
        Some(Ok(violation)) => (violation, None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    let keys = schema.as_ref().map(keys).unwrap_or_default();
    Ok(Examination {
        description,
        keys,
        sample: sample(schema.as_ref()),
        violation: violation.map(|(keys, message)| Violation { keys, message }),
        schema_problem,
    })
}

/// Returns the top-level properties of an object's schema for display in a table.
fn keys(schema: &Value) -> Vec<ConfigKey> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array);
    let row = |(key, property): (&String, &Value)| ConfigKey {
        key: key.clone(),
        required: required.is_some_and(|names| names.iter().any(|name| name == key)),
        default: property.get("default").cloned(),
        description: property
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    };
    properties.into_iter().flatten().map(row).collect()
}

/// Returns a `config` table that the schema probably allows.
fn sample(schema: Option<&Value>) -> Sample {
    let first = |schema: &Value| schema.get("examples")?.get(0).cloned();
    if let Some(example) = schema.and_then(first) {
        return Sample { table: example, from: SampleConfig::Example };
    }
    let required = schema.and_then(|schema| schema.get("required")?.as_array());
    let required = required.into_iter().flatten().filter_map(|key| key.as_str());
    let table: serde_json::Map<String, Value> = required
        .filter_map(|key| {
            let property = schema?.get("properties")?.get(key)?;
            let value = property.get("default").cloned().or_else(|| first(property))?;
            Some((key.to_owned(), value))
        })
        .collect();
    let from = if table.is_empty() { SampleConfig::Empty } else { SampleConfig::Properties };
    Sample { table: Value::Object(table), from }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use hookrun_config::Wants;

    #[test]
    fn a_failed_examination_names_the_limit_that_ended_it() {
        let meaning = |status: i32| match failure(ExitStatus::from_raw(status), "no such user") {
            Ok(Ok(examination)) => panic!("{examination:?}"),
            Ok(Err(refused)) => refused,
            Err(error) => error.to_string(),
        };
        insta::assert_snapshot!(meaning(libc::SIGXCPU), @"has metadata or a configuration schema that takes more than 2 s of processor time to check; its author must simplify it");
        insta::assert_snapshot!(meaning(libc::SIGABRT), @"has metadata or a configuration schema that takes more than 256 MiB of memory to check; its author must simplify it");
        insta::assert_snapshot!(meaning(libc::SIGKILL), @"cannot be examined: its process ended with signal: 9 (SIGKILL): no such user");
        insta::assert_snapshot!(meaning(1 << 8), @"cannot be examined: its process ended with exit status: 1: no such user");
    }

    /// Files in this format are on disk. After a change, increment `FORMAT` of the cache.
    #[test]
    fn an_examination_keeps_its_format() {
        let metadata = r#"{"format":1,"name":"x","version":"1","hooks":["post-build"]}"#;
        let examination = Examination {
            description: Description {
                metadata: serde_json::from_str(metadata).unwrap(),
                exports: vec![hookrun_nix::event::HookKind::PostBuild],
                imports: vec!["hookrun:host/log@0.1.0".to_owned()],
            },
            keys: vec![ConfigKey {
                key: "to".to_owned(),
                required: true,
                default: None,
                description: "who".to_owned(),
            }],
            sample: sample(None),
            violation: Some(Violation { keys: vec!["to".to_owned()], message: "no".to_owned() }),
            schema_problem: None,
        };
        let text = serde_json::to_string(&Examined::Ok(examination.clone())).unwrap();
        let wants = serde_json::to_string(&Wants::default()).unwrap();
        insta::assert_snapshot!(text.replace(&wants, "WANTS"), @r#"{"Ok":{"description":{"metadata":{"format":1,"name":"x","version":"1","description":"","hooks":["post-build"],"wants":WANTS,"order":"any","config-schema":null},"exports":["post-build"],"imports":["hookrun:host/log@0.1.0"]},"keys":[{"key":"to","required":true,"default":null,"description":"who"}],"sample":{"table":{},"from":"empty"},"violation":{"keys":["to"],"message":"no"},"schema-problem":null}}"#);
        assert_eq!(serde_json::from_str::<Examined>(&text).unwrap(), Ok(examination));
    }

    #[test]
    fn required_keys_are_filled_from_their_own_examples() {
        let schema = serde_json::json!({
            "required": ["greeting", "count", "unknown"],
            "properties": {
                "greeting": { "examples": ["hello", "hi"] },
                "count": { "default": 3 },
                "optional": { "default": 4 },
            },
        });
        let table = serde_json::json!({ "greeting": "hello", "count": 3 });
        assert_eq!(sample(Some(&schema)), Sample { table, from: SampleConfig::Properties });
        let empty = Sample { table: serde_json::json!({}), from: SampleConfig::Empty };
        assert_eq!(sample(None), empty);
    }

    #[test]
    fn keys_of_a_schema_are_listed() {
        let schema = serde_json::json!({
            "required": ["to"],
            "properties": { "to": { "description": "who" }, "size": { "default": 3 } },
        });
        let rows: Vec<String> = keys(&schema)
            .into_iter()
            .map(|ConfigKey { key, required, default, description }| {
                format!("{key} {required} {} {description}", default.unwrap_or_default())
            })
            .collect();
        assert_eq!(rows, ["size false 3 ", "to true null who"]);
        assert_eq!(keys(&serde_json::json!(true)), []);
    }
}
