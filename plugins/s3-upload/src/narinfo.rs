//! The narinfo of a path and the names of its objects (Nix `NarInfo::to_string`, same from 2.8 to
//! 2.35).

use std::fmt::Write as _;

use hookrun_sdk::nix_store::PathInfo;
use hookrun_sdk::object_store::{Compression, StoredNar};

/// As Nix writes it.
pub const CONTENT_TYPE: &str = "text/x-nix-narinfo";

/// `<hash part of the store path>.narinfo`.
pub fn key(path: &str) -> String {
    let base = base(path);
    format!("{}.narinfo", base.split_once('-').map_or(base, |(hash, _)| hash))
}

/// `nar/<NAR hash>.nar.zst`. By the hash of what is inside, which is known before the compressed
/// bytes are, so that one pass does; readers take the name from the narinfo.
pub fn nar_key(nar_hash: &str, compression: Compression) -> String {
    let hash = nar_hash.strip_prefix("sha256:").unwrap_or(nar_hash);
    let suffix = match compression {
        Compression::None => "",
        Compression::Zstd => ".zst",
        Compression::Xz => ".xz",
    };
    format!("nar/{hash}.nar{suffix}")
}

/// The text.
pub fn text(
    store_dir: &str,
    info: &PathInfo,
    nar_key: &str,
    compression: Compression,
    stored: &StoredNar,
    signatures: &[String],
) -> String {
    let references: Vec<&str> = info.references.iter().map(|path| base(path)).collect();
    let mut text = format!(
        "StorePath: {store_dir}/{}\nURL: {nar_key}\nCompression: {}\nFileHash: {}\nFileSize: {}\nNarHash: {}\nNarSize: {}\n\
         References: {}\n",
        base(&info.path),
        compression.as_str(),
        stored.file_hash,
        stored.file_size,
        stored.nar_hash,
        stored.nar_size,
        references.join(" "),
    );
    // Writing to a string does not fail.
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
    fn names() {
        assert_eq!(
            key("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12"),
            "00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo"
        );
        assert_eq!(nar_key("sha256:1b2m", Compression::Zstd), "nar/1b2m.nar.zst");
        assert_eq!(nar_key("sha256:1b2m", Compression::None), "nar/1b2m.nar");
    }

    #[test]
    fn lines_in_nixs_order() {
        let mut info = info("/s/b-1", &["/s/a-1", "/s/b-1"]);
        info.deriver = Some("/s/d-1.drv".into());
        info.ca = Some("fixed:r:sha256:x".into());
        let stored = StoredNar {
            file_hash: "sha256:f".into(),
            file_size: 5,
            nar_hash: info.nar_hash.clone(),
            nar_size: info.nar_size,
        };
        let text = text("/s", &info, "nar/n.nar.xz", Compression::Xz, &stored, &["k:sig".into()]);
        assert_eq!(
            text,
            "StorePath: /s/b-1\nURL: nar/n.nar.xz\nCompression: xz\nFileHash: sha256:f\nFileSize: 5\nNarHash: sha256:n\n\
             NarSize: 120\nReferences: a-1 b-1\nDeriver: d-1.drv\nSig: k:sig\nCA: fixed:r:sha256:x\n"
        );
    }
}
