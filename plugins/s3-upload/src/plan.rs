//! Decides which paths to upload and in which order, and formats the result. Pure.

use std::collections::{BTreeMap, HashMap};

use hookrun_sdk::Outcome;
use hookrun_sdk::nix_store::PathInfo;

/// Returns the paths that none of the keys in `skip` has signed. The others are counted in `signed`
/// by key.
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

/// Returns whether the path has a signature with the name of `key`. Nix has verified the signatures
/// of paths that it substituted.
pub(crate) fn is_signed_by(info: &PathInfo, key: &str) -> bool {
    info.signatures.iter().any(|signature| names(signature, key))
}

/// Returns whether the signature has the name of `key`.
pub(crate) fn names(signature: &str, key: &str) -> bool {
    signature.split_once(':').is_some_and(|(name, _)| name == key)
}

/// Sorts a few paths so that each comes after its references.
pub(crate) fn references_first(mut infos: Vec<PathInfo>) -> Vec<PathInfo> {
    let mut ordered: Vec<PathInfo> = Vec::with_capacity(infos.len());
    while !infos.is_empty() {
        let waits = |info: &PathInfo| {
            info.references
                .iter()
                .any(|path| *path != info.path && infos.iter().any(|other| other.path == *path))
        };
        // Nix allows no cycles. If there is one, it is cut at its first path.
        let next = infos.iter().position(|info| !waits(info)).unwrap_or(0);
        ordered.push(infos.remove(next));
    }
    ordered
}

/// Returns levels of `infos` (by index) that may become visible together. The references of a path
/// are in earlier levels. `infos` are sorted with references first.
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

/// Counts of an upload.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The number of uploaded paths.
    pub uploaded: usize,
    /// The stored size of the uploaded paths, in bytes.
    pub file_bytes: u64,
    /// The NAR size of the uploaded paths, in bytes.
    pub nar_bytes: u64,
    /// The number of paths that the cache already had.
    pub present: usize,
    /// The number of skipped paths for each key that has signed them.
    pub signed: BTreeMap<String, usize>,
    /// The number of outputs that are not valid any longer.
    pub invalid: usize,
    /// The number of uploaded paths that need a signature and have none.
    pub unsigned: usize,
}

impl Tally {
    /// Returns the outcome with message and values.
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
            parts.push(format!("{invalid} not valid any longer"));
        }
        Outcome::new(parts.join(", "))
            .detail("uploaded", uploaded)
            .detail("file-bytes", file_bytes)
            .detail("nar-bytes", nar_bytes)
            .detail("present", present)
            .detail("skipped", signed.values().sum::<usize>())
    }
}

/// Formats a size, such as `1.2 MiB`.
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
    fn paths_signed_by_a_named_key_are_skipped() {
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
    fn references_come_before_referrers() {
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
    fn the_outcome_has_counts_and_sizes() {
        let mut tally =
            Tally { uploaded: 3, file_bytes: 1_258_300, present: 5, ..Tally::default() };
        tally.signed.insert("cache.nixos.org-1".into(), 12);
        assert_eq!(
            tally.outcome().message,
            "uploaded 3 paths (1.2 MiB), 5 present, 12 signed by cache.nixos.org-1"
        );
        assert_eq!(
            Tally { present: 1, invalid: 1, ..Tally::default() }.outcome().message,
            "uploaded nothing, 1 present, 1 not valid any longer"
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
