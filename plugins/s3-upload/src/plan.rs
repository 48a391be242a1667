//! What is to be uploaded, in which order, and the words for what was done: decisions without a
//! host.

use std::collections::BTreeMap;

use hookrun_sdk::Outcome;
use hookrun_sdk::nix_store::PathInfo;

/// What an event's paths come to before the cache is asked.
#[derive(Debug, Default)]
pub struct Plan {
    /// To upload unless the cache has it, references first.
    pub wanted: Vec<PathInfo>,
    /// Left out: how many, by the key that signed them.
    pub signed: BTreeMap<String, usize>,
}

impl Plan {
    /// Sorts out what one of the keys `skip` signed.
    pub fn new(infos: Vec<PathInfo>, skip: &[String]) -> Self {
        let mut plan = Self::default();
        for info in infos {
            match skip.iter().find(|key| is_signed_by(&info, key)) {
                Some(key) => *plan.signed.entry(key.clone()).or_default() += 1,
                None => plan.wanted.push(info),
            }
        }
        plan
    }
}

/// Has the path a signature that says it is by `key`? Nix verified those of paths it substituted.
pub fn is_signed_by(info: &PathInfo, key: &str) -> bool {
    info.signatures.iter().any(|signature| names(signature, key))
}

/// Does the signature say it is by `key`?
pub fn names(signature: &str, key: &str) -> bool {
    signature.split_once(':').is_some_and(|(name, _)| name == key)
}

/// A few paths, each after those of them that it refers to.
pub fn references_first(mut infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut ordered: Vec<PathInfo> = Vec::with_capacity(infos.len());
    while !infos.is_empty() {
        let waits = |info: &PathInfo| {
            info.references
                .iter()
                .any(|path| *path != info.path && infos.iter().any(|other| other.path == *path))
        };
        // Nix admits no cycles; one would be cut at its first path.
        let next = infos.iter().position(|info| !waits(info)).unwrap_or(0);
        ordered.push(infos.remove(next));
    }
    ordered
}

/// What was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Paths uploaded.
    pub uploaded: usize,
    /// Their bytes as stored.
    pub file_bytes: u64,
    /// Their bytes as NARs.
    pub nar_bytes: u64,
    /// Paths the cache had.
    pub present: usize,
    /// Paths left out, by the key that signed them.
    pub signed: BTreeMap<String, usize>,
    /// Outputs that are not valid any more.
    pub invalid: usize,
}

impl Tally {
    /// In words and figures.
    pub fn outcome(&self) -> Outcome {
        let Self { uploaded, file_bytes, nar_bytes, present, signed, invalid } = self;
        let mut parts = vec![match uploaded {
            0 => "uploaded nothing".to_owned(),
            1 => format!("uploaded 1 path ({})", size(*file_bytes)),
            many => format!("uploaded {many} paths ({})", size(*file_bytes)),
        }];
        if *present > 0 {
            parts.push(format!("{present} present"));
        }
        parts.extend(signed.iter().map(|(key, count)| format!("{count} signed by {key}")));
        if *invalid > 0 {
            parts.push(format!("{invalid} not valid any more"));
        }
        Outcome::new(parts.join(", "))
            .detail("uploaded", uploaded)
            .detail("file-bytes", file_bytes)
            .detail("nar-bytes", nar_bytes)
            .detail("present", present)
            .detail("skipped", signed.values().sum::<usize>())
    }
}

/// `1.2 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit below, in whole numbers.
    let mut tenths = bytes.saturating_mul(10) / 1024;
    let mut unit = "KiB";
    for next in UNITS.iter().skip(1) {
        if tenths < 10 * 1024 {
            break;
        }
        tenths /= 1024;
        unit = next;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn info(path: &str, references: &[&str]) -> PathInfo {
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

    #[test]
    fn what_a_named_key_signed_is_left_out() {
        let mut signed = info("/s/a", &[]);
        signed.signatures = vec!["other-1:x".into(), "cache.nixos.org-1:y".into()];
        let plan =
            Plan::new(vec![signed.clone(), info("/s/b", &["/s/a"])], &["cache.nixos.org-1".into()]);
        assert_eq!(plan.wanted.len(), 1);
        assert_eq!(plan.signed["cache.nixos.org-1"], 1);
        assert!(!is_signed_by(&signed, "cache.nixos.org"));
        assert!(!is_signed_by(&signed, "cache.nixos.org-1:y"));
    }

    #[test]
    fn outputs_alone_are_put_in_order() {
        let infos = vec![
            info("/s/dev", &["/s/out", "/s/libc"]),
            info("/s/out", &["/s/out", "/s/lib"]),
            info("/s/lib", &[]),
        ];
        let paths: Vec<String> =
            references_first(infos).into_iter().map(|info| info.path).collect();
        assert_eq!(paths, ["/s/lib", "/s/out", "/s/dev"]);
        assert_eq!(
            references_first(vec![info("/s/a", &["/s/b"]), info("/s/b", &["/s/a"])]).len(),
            2
        );
    }

    #[test]
    fn messages() {
        let mut tally =
            Tally { uploaded: 3, file_bytes: 1_258_300, present: 5, ..Tally::default() };
        tally.signed.insert("cache.nixos.org-1".into(), 12);
        assert_eq!(
            tally.outcome().message,
            "uploaded 3 paths (1.2 MiB), 5 present, 12 signed by cache.nixos.org-1"
        );
        assert_eq!(
            Tally { present: 1, invalid: 1, ..Tally::default() }.outcome().message,
            "uploaded nothing, 1 present, 1 not valid any more"
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, 5 << 30, u64::MAX].map(size)[..4],
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB"]
        );
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
