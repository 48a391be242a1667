//! The narinfo of a path and the names of its objects (as Nix's `NarInfo::to_string`, which is the
//! same from 2.8 to 2.35).

use std::fmt::Write as _;

use hookrun_sdk::nix_store::PathInfo;
use hookrun_sdk::object_store::{Compression, StoredNar};

/// The content type that Nix uses.
pub(crate) const CONTENT_TYPE: &str = "text/x-nix-narinfo";

/// Returns the key of the narinfo: `<hash part of the store path>.narinfo`.
pub(crate) fn key(path: &str) -> String {
    let base = base(path);
    format!("{}.narinfo", base.split_once('-').map_or(base, |(hash, _)| hash))
}

/// Returns the text of the narinfo.
pub(crate) fn text(
    store_dir: &str,
    info: &PathInfo,
    compression: Compression,
    stored: &StoredNar,
    signatures: &[&str],
) -> String {
    let references: Vec<&str> = info.references.iter().map(|path| base(path)).collect();
    let mut text = format!(
        "StorePath: {store_dir}/{}\nURL: {}\nCompression: {}\nFileHash: {}\nFileSize: {}\nNarHash: {}\nNarSize: {}\n\
         References: {}\n",
        base(&info.path),
        stored.key,
        compression.as_str(),
        stored.file_hash,
        stored.file_size,
        stored.nar_hash,
        stored.nar_size,
        references.join(" "),
    );
    // Writing to a string cannot fail.
    if let Some(deriver) = &info.deriver {
        let _ = writeln!(text, "Deriver: {}", base(deriver));
    }
    for signature in signatures {
        let _ = writeln!(text, "Sig: {signature}");
    }
    if let Some(ca) = &info.ca {
        let _ = writeln!(text, "CA: {ca}");
    }
    text
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::info;

    #[test]
    fn keys_are_named_after_the_hash_part() {
        assert_eq!(
            key("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12"),
            "00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo"
        );
    }

    #[test]
    fn lines_are_in_the_order_of_nix() {
        let mut info = info("/s/b-1", &["/s/a-1", "/s/b-1"]);
        info.deriver = Some("/s/d-1.drv".into());
        info.ca = Some("fixed:r:sha256:x".into());
        let stored = StoredNar {
            key: "nar/n.nar.xz".into(),
            file_hash: "sha256:f".into(),
            file_size: 5,
            nar_hash: info.nar_hash.clone(),
            nar_size: info.nar_size,
        };
        let text = text("/s", &info, Compression::Xz, &stored, &["k:sig"]);
        assert_eq!(
            text,
            "StorePath: /s/b-1\nURL: nar/n.nar.xz\nCompression: xz\nFileHash: sha256:f\nFileSize: 5\nNarHash: sha256:n\n\
             NarSize: 120\nReferences: a-1 b-1\nDeriver: d-1.drv\nSig: k:sig\nCA: fixed:r:sha256:x\n"
        );
    }
}
