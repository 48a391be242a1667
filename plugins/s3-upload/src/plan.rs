//! What is to be uploaded, in which order, and the words for what was done: decisions without a
//! host.

use std::collections::{BTreeMap, HashMap};

use hookrun_sdk::Outcome;
use hookrun_sdk::nix_store::PathInfo;

/// The paths without those that one of the keys `skip` signed, which are counted in `signed` by
/// key.
pub(crate) fn not_signed_by(
    infos: Vec<PathInfo>,
    skip: &[String],
    signed: &mut BTreeMap<String, usize>,
) -> Vec<String> {
    let mut wanted = Vec::with_capacity(infos.len());
    for info in infos {
        match skip.iter().find(|key| is_signed_by(&info, key)) {
            Some(key) => *signed.entry(key.clone()).or_default() += 1,
            None => wanted.push(info.path),
        }
    }
    wanted
}

/// Has the path a signature that says it is by `key`? Nix verified those of paths it substituted.
pub(crate) fn is_signed_by(info: &PathInfo, key: &str) -> bool {
    info.signatures.iter().any(|signature| names(signature, key))
}

/// Returns whether the signature names `key`.
pub(crate) fn names(signature: &str, key: &str) -> bool {
    signature.split_once(':').is_some_and(|(name, _)| name == key)
}

/// A few paths, each after those of them that it refers to.
pub(crate) fn references_first(mut infos: Vec<PathInfo>) -> Vec<PathInfo> {
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

/// Which of `infos`, which are in order, may become visible together, by index: each is in a level
/// behind those of all that it refers to.
pub(crate) fn levels<'a>(infos: impl Iterator<Item = &'a PathInfo>) -> Vec<Vec<usize>> {
    let mut levels: Vec<Vec<usize>> = Vec::new();
    let mut level_of: HashMap<&str, usize> = HashMap::new();
    for (index, info) in infos.enumerate() {
        let references = info.references.iter().filter(|path| **path != info.path);
        let behind = references.filter_map(|path| level_of.get(path.as_str()));
        let level = behind.max().map_or(0, |level| level + 1);
        level_of.insert(&info.path, level);
        if level >= levels.len() {
            levels.push(Vec::new());
        }
        if let Some(level) = levels.get_mut(level) {
            level.push(index);
        }
    }
    levels
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
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
    /// Paths uploaded that nobody has signed and that need a signature.
    pub unsigned: usize,
}

impl Tally {
    /// In words and figures.
    pub(crate) fn outcome(&self) -> Outcome {
        let Self { uploaded, file_bytes, nar_bytes, present, signed, invalid, unsigned: _ } = self;
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
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
pub(crate) mod tests {
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

    #[test]
    fn what_a_named_key_signed_is_left_out() {
        let mut signed = info("/s/a", &[]);
        signed.signatures = vec!["other-1:x".into(), "cache.nixos.org-1:y".into()];
        let mut by_key = BTreeMap::new();
        let infos = vec![signed.clone(), info("/s/b", &["/s/a"])];
        let wanted = not_signed_by(infos, &["cache.nixos.org-1".into()], &mut by_key);
        assert_eq!(wanted, ["/s/b"]);
        assert_eq!(by_key["cache.nixos.org-1"], 1);
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
    fn a_path_becomes_visible_after_its_references() {
        let infos = [
            info("/s/a", &["/s/a", "/s/elsewhere"]),
            info("/s/b", &[]),
            info("/s/c", &["/s/a"]),
            info("/s/d", &["/s/b", "/s/c"]),
            info("/s/e", &["/s/b"]),
        ];
        assert_eq!(levels(infos.iter()), [vec![0, 1], vec![2, 4], vec![3]]);
        assert!(levels(std::iter::empty()).is_empty());
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
