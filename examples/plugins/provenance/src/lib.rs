//! Writes a statement about each build to an object store: an in-toto Statement v1 with SLSA
//! provenance v1. README.md describes what is signed, and what is not.

mod nix_base32;
mod statement;

use hookrun_sdk::nix_store::{self, PathInfo};
use hookrun_sdk::object_store::ObjectStore;
use hookrun_sdk::{
    Error, ErrorKind, Failure, Outcome, PostBuild, Scope, Want, Wants, post_build, signing,
};
use serde::Deserialize;

use statement::Subject;

/// The media type of in-toto statements.
const MEDIA_TYPE: &str = "application/vnd.in-toto+json";

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    store: String,
    #[serde(default = "default_prefix")]
    prefix: String,
    builder_id: String,
}

fn default_prefix() -> String {
    "provenance".to_owned()
}

struct Provenance;

impl PostBuild for Provenance {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        let store = ObjectStore::named(config.store);
        let key = statement::key(&config.prefix, &event);
        // A statement is written once. The event is the same for each attempt.
        if store.exists(std::slice::from_ref(&key))?.contains(&true) {
            return Ok(Outcome::new(format!("{key} exists already")).detail("written", 0));
        }
        let paths: Vec<String> = event.outputs.iter().map(|output| output.path.clone()).collect();
        let infos: Vec<PathInfo> = nix_store::path_infos(&paths)?.into_iter().flatten().collect();
        if infos.is_empty() {
            return Ok(Outcome::new(format!("no output of {} is valid any longer", event.name)));
        }
        let derivation = nix_store::derivation(&event.drv_path)?;
        let subjects = signed(infos)?;
        let statement = statement::statement(&event, &derivation, &subjects, &config.builder_id)
            .map_err(Failure::permanent)?;
        let body = serde_json::to_vec(&statement)
            .map_err(|error| Failure::permanent(format!("the statement: {error}")))?;
        store.put(&key, MEDIA_TYPE, &body)?;
        Ok(Outcome::new(format!("wrote {key}")).detail("written", 1))
    }
}

hookrun_sdk::plugin! {
    plugin: Provenance,
    hooks: [PostBuild],
    wants: Wants {
        nix_store: Scope::Outputs,
        object_store: Want::Required,
        signing: Want::Optional,
        ..Wants::NOTHING
    },
    config_schema: r#"{
        "type": "object",
        "examples": [{ "store": "cache", "builder-id": "https://builds.example.org/hookrun" }],
        "additionalProperties": false,
        "required": ["store", "builder-id"],
        "properties": {
            "store": {
                "description": "The name of an object store in the grant.",
                "type": "string"
            },
            "prefix": {
                "description": "The beginning of the keys of objects.",
                "type": "string",
                "pattern": "^[^/]",
                "default": "provenance"
            },
            "builder-id": {
                "description": "The URI of the build platform, which readers of a statement trust.",
                "type": "string",
                "pattern": "^[a-z][a-z0-9+.-]*:."
            }
        }
    }"#,
}

/// Adds to each path its signature by each granted key.
fn signed(infos: Vec<PathInfo>) -> Result<Vec<Subject>, Error> {
    let keys = match signing::keys() {
        Err(error) if error.kind == ErrorKind::Denied => Vec::new(),
        keys => keys?,
    };
    let paths: Vec<String> = infos.iter().map(|info| info.path.clone()).collect();
    let mut subjects: Vec<Subject> =
        infos.into_iter().map(|info| Subject { info, signatures: Vec::new() }).collect();
    for key in keys {
        let signatures = signing::sign_paths(&key, &paths)?;
        for (subject, signature) in subjects.iter_mut().zip(signatures) {
            subject.signatures.push(signature);
        }
    }
    Ok(subjects)
}
