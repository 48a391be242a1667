//! Which signatures are trusted, and whether the contents of a narinfo can be vouched for.

use hookrun_nix::database::PathInfo;
use hookrun_nix::narinfo::{Narinfo, PublicKeys, SignatureState};

/// The result of checking the signatures of one narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A trusted key signed it, or it is named after its contents.
    Trusted,
    /// It has no signature.
    Unsigned,
    /// Only keys signed it that are not trusted.
    Foreign(Vec<String>),
}

/// Returns whether a narinfo is trusted, and the names of trusted keys whose signatures are wrong.
pub fn of(narinfo: &Narinfo, keys: &PublicKeys) -> (Trust, Vec<String>) {
    let verified = narinfo.verify(keys);
    let of_state = |wanted: SignatureState| {
        let found = verified.iter().filter(move |(_, state)| *state == wanted);
        found.map(|(name, _)| name.clone()).collect::<Vec<String>>()
    };
    let wrong = of_state(SignatureState::Wrong);
    let trust = if !of_state(SignatureState::Valid).is_empty() || narinfo.is_content_addressed() {
        Trust::Trusted
    } else if verified.is_empty() {
        Trust::Unsigned
    } else {
        Trust::Foreign(verified.iter().map(|(name, _)| name.clone()).collect())
    };
    (trust, wrong)
}

/// Returns whether a valid path of this machine is what the narinfo describes.
pub fn agrees(narinfo: &Narinfo, info: &PathInfo) -> bool {
    let mut references: Vec<&str> =
        info.references.iter().map(|path| path.rsplit('/').next().unwrap_or(path)).collect();
    references.sort_unstable();
    info.path == narinfo.store_path()
        && info.nar_hash == narinfo.nar_hash()
        && info.nar_size == narinfo.nar_size()
        && narinfo.references().eq(references)
}
