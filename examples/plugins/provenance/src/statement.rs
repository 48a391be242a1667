//! The statement: an in-toto Statement v1 whose predicate is SLSA provenance v1.

use std::time::{Duration, UNIX_EPOCH};

use hookrun_sdk::nix_store::{Derivation, PathInfo};
use hookrun_sdk::post_build::Event;
use serde_json::{Value, json};

use crate::nix_base32;

/// The type of a statement, see
/// <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of the predicate, see <https://slsa.dev/spec/v1.0/provenance>.
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// The build type, which README.md describes.
const BUILD_TYPE: &str =
    "https://github.com/hookrun/hookrun/tree/main/examples/plugins/provenance#build-type";

/// A path that was built.
pub struct Subject {
    pub info: PathInfo,
    /// Signatures of its fingerprint, `name:base64`.
    pub signatures: Vec<String>,
}

/// Returns the key of the statement about an event: one per build, below the derivation.
pub fn key(prefix: &str, event: &Event) -> String {
    let derivation = event.drv_path.rsplit('/').next().unwrap_or_default();
    format!("{prefix}/{derivation}/{}.intoto.json", event.id)
}

/// Returns the statement. It is the same for each attempt at the event.
pub fn statement(
    event: &Event,
    derivation: &Derivation,
    subjects: &[Subject],
    builder_id: &str,
) -> Result<Value, String> {
    let subject = subjects.iter().map(resource).collect::<Result<Vec<_>, _>>()?;
    let finished = UNIX_EPOCH + Duration::from_millis(event.time_ms);
    Ok(json!({
        "_type": STATEMENT,
        "subject": subject,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": { "derivation": event.drv_path },
                "internalParameters": {
                    "system": derivation.system,
                    "builder": derivation.builder,
                },
            },
            "runDetails": {
                "builder": { "id": builder_id },
                "metadata": {
                    "invocationId": event.id,
                    "finishedOn": humantime::format_rfc3339_seconds(finished).to_string(),
                },
            },
        },
    }))
}

/// Describes an output (a ResourceDescriptor). The digest is that of its NAR.
fn resource(subject: &Subject) -> Result<Value, String> {
    let Subject { info, signatures } = subject;
    let mut resource = json!({
        "name": info.path,
        "digest": { "sha256": nix_base32::hex(&info.nar_hash)? },
        "mediaType": "application/x-nix-nar",
    });
    if !signatures.is_empty() {
        resource["annotations"] =
            json!({ "nixFingerprint": fingerprint(info), "nixSignatures": signatures });
    }
    Ok(resource)
}

/// Returns what a signature of Nix signs.
fn fingerprint(info: &PathInfo) -> String {
    let PathInfo { path, nar_hash, nar_size, references, .. } = info;
    format!("1;{path};{nar_hash};{nar_size};{}", references.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_sdk::post_build::Output;

    const PATH: &str = "/nix/store/7yqz1aw5s3jr0vkxg2h9w4l6dqm8nfbc-greet-2.12";

    fn event() -> Event {
        Event {
            id: "01941fd6-4c00-7000-8000-000000000001".into(),
            time_ms: 1_795_376_832_000,
            host: "builder1".into(),
            store_dir: "/nix/store".into(),
            drv_path: "/nix/store/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv".into(),
            name: "greet-2.12".into(),
            outputs: vec![Output { name: "out".into(), path: PATH.into() }],
            attempt: 1,
            details: Vec::new(),
        }
    }

    fn subject(nar_hash: &str, signatures: &[&str]) -> Subject {
        let info = PathInfo {
            path: PATH.into(),
            nar_hash: nar_hash.into(),
            nar_size: 120,
            references: vec![PATH.into()],
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            ultimate: true,
            registration_time: 0,
        };
        Subject { info, signatures: signatures.iter().map(ToString::to_string).collect() }
    }

    fn derivation() -> Derivation {
        Derivation {
            name: "greet-2.12".into(),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            outputs: Vec::new(),
            env: Vec::new(),
        }
    }

    const HASH: &str = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

    #[test]
    fn a_statement_has_what_the_specifications_require() {
        let subjects = [subject(HASH, &["cache.example.org-1:AAAA"])];
        let statement = statement(&event(), &derivation(), &subjects, "https://b").unwrap();
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
        let subject = &statement["subject"][0];
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(subject["digest"], json!({ "sha256": hex }));
        let fingerprint = format!("1;{PATH};{HASH};120;{PATH}");
        assert_eq!(subject["annotations"]["nixFingerprint"], fingerprint);
        let predicate = &statement["predicate"];
        assert_eq!(predicate["runDetails"]["builder"]["id"], "https://b");
        assert_eq!(predicate["runDetails"]["metadata"]["finishedOn"], "2026-11-22T19:47:12Z");
        assert!(predicate["buildDefinition"]["buildType"].is_string());
    }

    #[test]
    fn without_a_signature_there_is_no_annotation() {
        let statement =
            statement(&event(), &derivation(), &[subject(HASH, &[])], "https://b").unwrap();
        assert_eq!(statement["subject"][0]["annotations"], Value::Null);
    }

    #[test]
    fn the_key_names_the_derivation_and_the_event() {
        assert_eq!(
            key("provenance", &event()),
            "provenance/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-greet-2.12.drv/01941fd6-4c00-7000-8000-000000000001.intoto.json"
        );
    }
}
