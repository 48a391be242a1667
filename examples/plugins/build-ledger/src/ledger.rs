//! Entries of the ledger, `PREFIX/DERIVATION/OUTPUT/HASH/HOST.json`, and their comparison.

use std::collections::BTreeMap;

use hookrun_sdk::nix_store::PathInfo;
use hookrun_sdk::object_store::Object;
use hookrun_sdk::post_build::Event;
use serde_json::json;

/// The number of entries of one output that are read. Fewer machines build one derivation.
pub const MAX_ENTRIES: u32 = 1000;

/// The result of one output on one machine.
pub struct Entry {
    /// The key of the object.
    pub key: String,
    /// The prefix of the keys of all entries about this output.
    pub directory: String,
    /// The name of the output.
    pub output: String,
    body: Vec<u8>,
}

impl Entry {
    /// Returns the entry about an output of an event, or an error for a hash of another kind.
    pub fn new(prefix: &str, event: &Event, output: &str, info: &PathInfo) -> Result<Self, String> {
        let PathInfo { path, nar_hash, nar_size, .. } = info;
        let hash = nar_hash
            .strip_prefix("sha256:")
            .ok_or_else(|| format!("the hash of {path} is `{nar_hash}`, which is not SHA-256"))?;
        let derivation = event.drv_path.rsplit('/').next().unwrap_or_default();
        let directory = format!("{prefix}/{derivation}/{output}/");
        let key = format!("{directory}{hash}/{}.json", file_name(&event.host));
        let body = json!({
            "host": event.host,
            "time-ms": event.time_ms,
            "path": path,
            "nar-hash": nar_hash,
            "nar-size": nar_size,
        });
        let output = output.to_owned();
        Ok(Self { key, directory, output, body: body.to_string().into_bytes() })
    }

    /// Returns the object to write.
    pub fn object(&self) -> Object {
        Object {
            key: self.key.clone(),
            content_type: "application/json".to_owned(),
            body: self.body.clone(),
        }
    }
}

/// Returns the results and their machines if the entries with these keys have different results.
pub fn disagreement(entry: &Entry, keys: &[String]) -> Option<String> {
    let mut results: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // A store may list a new object late.
    let own = std::iter::once(&entry.key).filter(|own| !keys.contains(own));
    for key in keys.iter().chain(own) {
        let rest = key.strip_prefix(&entry.directory)?.strip_suffix(".json");
        if let Some((hash, host)) = rest.and_then(|rest| rest.split_once('/')) {
            results.entry(hash).or_default().push(host);
        }
    }
    if results.len() < 2 {
        return None;
    }
    let results: Vec<String> = results
        .into_iter()
        .map(|(hash, hosts)| format!("sha256:{hash} on {}", hosts.join(", ")))
        .collect();
    Some(format!("the results of `{}` differ: {}", entry.output, results.join(" and ")))
}

/// Returns a host name as a part of a key.
fn file_name(host: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    host.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(host: &str, hash: &str) -> Entry {
        let event = Event {
            id: "1".into(),
            time_ms: 1,
            host: host.into(),
            store_dir: "/nix/store".into(),
            drv_path: "/nix/store/d-greet.drv".into(),
            name: "greet".into(),
            outputs: Vec::new(),
            attempt: 1,
            details: Vec::new(),
        };
        let info = PathInfo {
            path: "/nix/store/o-greet".into(),
            nar_hash: hash.into(),
            nar_size: 1,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            ultimate: true,
            registration_time: 0,
        };
        Entry::new("ledger", &event, "out", &info).unwrap()
    }

    #[test]
    fn a_key_contains_derivation_output_result_and_machine() {
        let key = entry("b/../1.example.org", "sha256:aa").key;
        assert_eq!(key, "ledger/d-greet.drv/out/aa/b_.._1.example.org.json");
    }

    #[test]
    fn equal_results_agree_and_others_are_named() {
        let [one, two, three] = [("b1", "aa"), ("b2", "aa"), ("b3", "bb")]
            .map(|(host, hash)| entry(host, &format!("sha256:{hash}")));
        assert_eq!(disagreement(&two, std::slice::from_ref(&one.key)), None);
        let keys = [one.key, two.key];
        assert_eq!(
            disagreement(&three, &keys).as_deref(),
            Some("the results of `out` differ: sha256:aa on b1, b2 and sha256:bb on b3")
        );
    }
}
