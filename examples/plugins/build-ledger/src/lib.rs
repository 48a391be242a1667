//! Records the result of each build in an object store that several machines share, and reports
//! outputs for which two of them got different results.
//!
//! Each entry is a separate object, whose key contains the result and the machine, so entries are
//! only added and never changed. A run writes its entries first and lists those of all machines
//! afterwards: of two machines that build at the same time, at least one sees both.

mod ledger;

use hookrun_sdk::nix_store;
use hookrun_sdk::object_store::{Object, ObjectStore};
use hookrun_sdk::{Failure, Outcome, PostBuild, Scope, Want, Wants, log, post_build};
use serde::Deserialize;

use ledger::{Entry, MAX_ENTRIES, disagreement};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    store: String,
    #[serde(default = "default_prefix")]
    prefix: String,
    #[serde(default)]
    on_difference: OnDifference,
}

fn default_prefix() -> String {
    "ledger".to_owned()
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum OnDifference {
    #[default]
    Fail,
    Warn,
}

struct BuildLedger;

impl PostBuild for BuildLedger {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        let store = ObjectStore::named(config.store);
        let paths: Vec<String> = event.outputs.iter().map(|output| output.path.clone()).collect();
        let infos = nix_store::path_infos(&paths)?;
        let mut entries = Vec::new();
        for (output, info) in event.outputs.iter().zip(&infos) {
            if let Some(info) = info {
                let entry = Entry::new(&config.prefix, &event, &output.name, info);
                entries.push(entry.map_err(Failure::permanent)?);
            }
        }
        if entries.is_empty() {
            return Ok(Outcome::new(format!("no output of {} is valid any longer", event.name)));
        }
        let keys: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        let present = store.exists(&keys)?;
        let missing: Vec<Object> = entries
            .iter()
            .zip(present)
            .filter(|(_, present)| !present)
            .map(|(entry, _)| entry.object())
            .collect();
        let written = missing.len();
        store.put_all(&missing)?;

        let mut differences = Vec::new();
        for entry in &entries {
            let known = store.list(&entry.directory, MAX_ENTRIES)?;
            differences.extend(disagreement(entry, &known));
        }
        if differences.is_empty() {
            let message = format!("{}: all machines got the same result", event.name);
            return Ok(Outcome::new(message).detail("written", written));
        }
        let message = format!("{}: {}", event.name, differences.join("; "));
        match config.on_difference {
            OnDifference::Fail => Err(Failure::permanent(message)),
            OnDifference::Warn => {
                log::warn(&message);
                Ok(Outcome::new(message)
                    .detail("written", written)
                    .detail("differences", differences.len()))
            }
        }
    }
}

hookrun_sdk::plugin! {
    plugin: BuildLedger,
    hooks: [PostBuild],
    wants: Wants {
        nix_store: Scope::Outputs,
        object_store: Want::Required,
        ..Wants::NOTHING
    },
    config_schema: r#"{
        "type": "object",
        "examples": [{ "store": "ledger" }],
        "additionalProperties": false,
        "required": ["store"],
        "properties": {
            "store": {
                "description": "The name of an object store in the grant, which all machines share.",
                "type": "string"
            },
            "prefix": {
                "description": "The beginning of the keys of objects.",
                "type": "string",
                "pattern": "^[^/]",
                "default": "ledger"
            },
            "on-difference": {
                "description": "What a different result becomes: a dead letter, which `hookrun status` shows, or a warning in the log.",
                "enum": ["fail", "warn"],
                "default": "fail"
            }
        }
    }"#,
}
