//! Decides which paths to upload and in which form, and formats the result. Pure.

use std::collections::BTreeMap;

use hookrun_sdk::Outcome;
use hookrun_sdk::binary_cache::{Group, Report};
use hookrun_sdk::nix_store::PathInfo;

use crate::config::{Config, Rule, is_signed_by};

/// The paths to upload, by form, and those to leave out.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    groups: BTreeMap<Option<usize>, Vec<String>>,
    /// Paths that are not uploaded.
    pub elsewhere: Vec<String>,
    /// The number of them that are signed, for each key.
    signed: BTreeMap<String, u64>,
    /// The number of them that a rule leaves out.
    left_out: u64,
}

impl Plan {
    /// Adds a path about which nothing needs to be known.
    pub(crate) fn add(&mut self, path: String) {
        self.groups.entry(None).or_default().push(path);
    }

    /// Decides about a path.
    pub(crate) fn decide(&mut self, config: &Config, info: PathInfo) {
        if let Some(key) = config.skip_signed_by.iter().find(|key| is_signed_by(&info, key)) {
            *self.signed.entry(key.clone()).or_default() += 1;
            self.elsewhere.push(info.path);
            return;
        }
        let rule = config.paths.iter().position(|rule| rule.matches(&info));
        if rule.and_then(|rule| config.paths.get(rule)).and_then(|rule| rule.upload) == Some(false)
        {
            self.left_out += 1;
            self.elsewhere.push(info.path);
            return;
        }
        self.groups.entry(rule).or_default().push(info.path);
    }

    /// Returns the paths to upload.
    pub(crate) fn groups(&mut self, config: &Config) -> Vec<Group> {
        let plain = Rule::default();
        let groups = std::mem::take(&mut self.groups).into_iter();
        groups
            .map(|(rule, paths)| {
                let rule = rule.and_then(|rule| config.paths.get(rule)).unwrap_or(&plain);
                let other = rule.compression.is_some_and(|other| other != config.compression);
                Group {
                    paths,
                    compression: rule.compression.unwrap_or(config.compression).into(),
                    // The level of one format has no meaning in another.
                    level: rule.level.or(config.level.filter(|_| !other)),
                    storage_class: rule.storage_class.clone(),
                    tags: rule.tags.clone().into_iter().collect(),
                }
            })
            .collect()
    }

    /// Returns the outcome of an upload after which `invalid` outputs are not valid any longer.
    pub(crate) fn outcome(&self, report: &Report, invalid: usize) -> Outcome {
        let Report { uploaded, file_bytes, nar_bytes, present, signed, different, .. } = report;
        let mut parts = vec![match uploaded {
            0 => "uploaded nothing".to_owned(),
            1 => format!("uploaded 1 path ({})", size(*file_bytes)),
            many => format!("uploaded {many} paths ({})", size(*file_bytes)),
        }];
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        };
        add(*present, "present");
        add(*signed, "of them signed again");
        add(*different, "of them with other contents in the cache");
        for (key, count) in &self.signed {
            add(*count, &format!("signed by {key}"));
        }
        add(self.left_out, "left out");
        add(invalid as u64, "not valid any longer");
        Outcome::new(parts.join(", "))
            .detail("uploaded", uploaded)
            .detail("file-bytes", file_bytes)
            .detail("nar-bytes", nar_bytes)
            .detail("present", present)
            .detail("skipped", self.elsewhere.len())
    }
}

/// Formats a size, such as `1.2 MiB`.
fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use hookrun_sdk::object_store::Compression;

    use super::*;

    pub(crate) fn info(path: &str, references: &[&str]) -> PathInfo {
        PathInfo {
            path: path.to_owned(),
            nar_hash: "sha256:n".to_owned(),
            nar_size: 120,
            references: references.iter().map(|path| (*path).to_owned()).collect(),
            deriver: None,
            signatures: vec![],
            ca: None,
            ultimate: true,
            registration_time: 0,
        }
    }

    fn config(text: &str) -> Config {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn paths_signed_by_a_named_key_are_elsewhere() {
        let config = config(r#"{"bucket": "c", "skip-signed-by": ["cache.nixos.org-1"]}"#);
        let mut signed = info("/s/a", &[]);
        signed.signatures = vec!["other-1:x".into(), "cache.nixos.org-1:y".into()];
        let mut plan = Plan::default();
        plan.decide(&config, signed.clone());
        plan.decide(&config, info("/s/b", &["/s/a"]));
        assert_eq!(plan.elsewhere, ["/s/a"]);
        assert_eq!(plan.signed["cache.nixos.org-1"], 1);
        assert_eq!(plan.groups(&config)[0].paths, ["/s/b"]);
        assert!(!is_signed_by(&signed, "cache.nixos.org"));
        assert!(!is_signed_by(&signed, "cache.nixos.org-1:y"));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let config = config(
            r#"{"bucket": "c", "level": 5, "paths": [
                {"name": "*.iso", "upload": false},
                {"name": "*-debug", "compression": "xz", "storage-class": "STANDARD_IA", "tags": {"kind": "debug"}},
                {"name": "a*", "level": 19}
            ]}"#,
        );
        let mut plan = Plan::default();
        for path in ["/s/0-a-debug", "/s/1-a.iso", "/s/2-a", "/s/3-b"] {
            plan.decide(&config, info(path, &[]));
        }
        assert_eq!((plan.elsewhere.clone(), plan.left_out), (vec!["/s/1-a.iso".to_owned()], 1));
        let plain = Group { level: Some(5), ..Group::default() };
        let group = |path: &str, group: Group| Group { paths: vec![path.to_owned()], ..group };
        assert_eq!(
            plan.groups(&config),
            [
                group("/s/3-b", plain.clone()),
                group(
                    "/s/0-a-debug",
                    Group {
                        compression: Compression::Xz,
                        level: None,
                        storage_class: Some("STANDARD_IA".to_owned()),
                        tags: vec![("kind".to_owned(), "debug".to_owned())],
                        ..Group::default()
                    }
                ),
                group("/s/2-a", Group { level: Some(19), ..plain }),
            ]
        );
    }

    #[test]
    fn the_outcome_has_counts_and_sizes() {
        let mut plan = Plan::default();
        plan.signed.insert("cache.nixos.org-1".into(), 12);
        let report = Report { uploaded: 3, file_bytes: 1_258_300, present: 5, ..Report::default() };
        assert_eq!(
            plan.outcome(&report, 0).message,
            "uploaded 3 paths (1.2 MiB), 5 present, 12 signed by cache.nixos.org-1"
        );
        let report = Report { present: 1, signed: 1, ..Report::default() };
        assert_eq!(
            Plan::default().outcome(&report, 1).message,
            "uploaded nothing, 1 present, 1 of them signed again, 1 not valid any longer"
        );
    }

    #[test]
    fn sizes_are_formatted() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, 5 << 30, u64::MAX].map(size)[..4],
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB"]
        );
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
