//! The differences between versions of Nix and of Lix that hookrun handles, in one table.
//! docs/nix-versions.md explains the same rows to users; a test compares the two.
//!
//! Most code needs no version, because the data that the caller sends show which rule it follows;
//! `handled_in` names that code. Only code that predicts what an installed Nix does, such as
//! `hookrun doctor`, calls [`Quirk::applies_to`].

use crate::installed::{Flavour, Version};

/// A difference between versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirk {
    /// The versions, as in the first column of the document.
    pub versions: &'static str,
    /// For Nix: the first version that has it, and the first later version that does not.
    nix: Option<(Version, Version)>,
    /// The same for Lix; also none if it was not checked.
    lix: Option<(Version, Version)>,
    /// The difference, as in the second column of the document.
    pub difference: &'static str,
    /// The file in the source of Nix or Lix that contains it.
    pub source: &'static str,
    /// The module that handles it.
    pub handled_in: &'static str,
}

/// A version before all others.
const FIRST: Version = Version(0, 0, 0);
/// A version after all others.
const LAST: Version = Version(u32::MAX, 0, 0);
const ALL: Option<(Version, Version)> = Some((FIRST, LAST));

impl Quirk {
    /// Returns whether `version` of `flavour` has this quirk.
    pub fn applies_to(&self, flavour: Flavour, version: Version) -> bool {
        let range = match flavour {
            Flavour::Nix => self.nix,
            Flavour::Lix => self.lix,
        };
        range.is_some_and(|(from, before)| (from..before).contains(&version))
    }
}

/// `OUT_PATHS` of the post-build hook is empty.
pub const EMPTY_OUT_PATHS: Quirk = Quirk {
    versions: "2.8.0",
    nix: Some((Version(2, 8, 0), Version(2, 8, 1))),
    lix: None,
    difference: "`OUT_PATHS` is empty.",
    source: "libstore/build/derivation-goal.cc",
    handled_in: "hookrun_nix::post_build",
};

/// `OUT_PATHS` contains only the outputs that the command asked for.
pub const PARTIAL_OUT_PATHS: Quirk = Quirk {
    versions: "2.8.1 to 2.15",
    nix: Some((Version(2, 8, 1), Version(2, 16, 0))),
    lix: None,
    difference: "`OUT_PATHS` contains only the outputs that the command asked for.",
    source: "libstore/build/derivation-goal.cc",
    handled_in: "hookrun_nix::post_build",
};

/// `OUT_PATHS` is empty with `--check`.
pub const EMPTY_OUT_PATHS_OF_CHECK: Quirk = Quirk {
    versions: "2.30.0 to 2.32.2",
    nix: Some((Version(2, 30, 0), Version(2, 32, 3))),
    lix: None,
    difference: "`OUT_PATHS` is empty with `--check`.",
    source: "libstore/build/derivation-building-goal.cc",
    handled_in: "hookrun_nix::post_build",
};

/// The setting `repeat` calls the diff hook with the paths in the other order.
pub const REPEAT: Quirk = Quirk {
    versions: "up to 2.12",
    nix: Some((FIRST, Version(2, 13, 0))),
    lix: None,
    difference: "`repeat` calls the hook between rounds, with the paths in the other order.",
    source: "libstore/build/local-derivation-goal.cc",
    handled_in: "hookrun_nix::diff",
};

/// `build-hook` of the system's nix.conf has no effect (NixOS/nix#15083).
pub const IGNORES_BUILD_HOOK: Quirk = Quirk {
    versions: "2.25 to 2.33",
    nix: Some((Version(2, 25, 0), Version(2, 34, 0))),
    lix: None,
    difference: "`build-hook` in the system's nix.conf is overwritten by the default.",
    source: "nix/main.cc",
    handled_in: "hookrun's doctor, ci and demo",
};

/// Lix uses Cap'n Proto for its build hook.
pub const LIX_PROTOCOL: Quirk = Quirk {
    versions: "Lix 2.94 and later",
    nix: None,
    lix: Some((Version(2, 94, 0), LAST)),
    difference: "The protocol is another one.",
    source: "lix/libstore/build/hook-instance.capnp",
    handled_in: "hookrun's doctor and `builders render`",
};

/// Speed factors are whole numbers.
pub const WHOLE_SPEED_FACTORS: Quirk = Quirk {
    versions: "2.19 and earlier, Lix",
    nix: Some((FIRST, Version(2, 20, 0))),
    lix: ALL,
    difference: "Speed factors are whole numbers, and the load is divided by them without a \
                 remainder.",
    source: "libstore/machines.cc",
    handled_in: "the rule of Nix in hookrun-builders",
};

/// Comments and includes of machines files follow other rules.
pub const OLD_MACHINES_SYNTAX: Quirk = Quirk {
    versions: "2.28 and earlier, Lix",
    nix: Some((FIRST, Version(2, 29, 0))),
    lix: ALL,
    difference: "In a machines file a comment also ends at the next `;`, and an entry with blanks \
                 before `@file` is not an include.",
    source: "libstore/machines.cc",
    handled_in: "hookrun_nix::machines",
};

/// The names of slot files contain the store URI as it was written.
pub const PLAIN_SLOT_NAMES: Quirk = Quirk {
    versions: "2.22 and earlier",
    nix: Some((FIRST, Version(2, 23, 0))),
    lix: None,
    difference: "The names of slot files contain the store URI as it was written; later versions \
                 normalise it.",
    source: "build-remote/build-remote.cc",
    handled_in: "slot files in hookrun-builders",
};

/// The exit code of a build hook has a meaning.
pub const EXIT_CODES: Quirk = Quirk {
    versions: "2.28 and earlier",
    nix: Some((FIRST, Version(2, 29, 0))),
    lix: None,
    difference: "The exit codes 100 and 101 of the hook mean a permanent failure and a timeout.",
    source: "libstore/build/derivation-goal.cc",
    handled_in: "the build hook's process in hookrun-builders",
};

/// `NIX_SSHOPTS` is split at blanks.
pub const SSHOPTS_AT_BLANKS: Quirk = Quirk {
    versions: "up to 2.33",
    nix: Some((FIRST, Version(2, 34, 0))),
    lix: None,
    difference: "`NIX_SSHOPTS` is split at blanks; later versions split it as a shell does.",
    source: "libstore/ssh.cc",
    handled_in: "ssh in hookrun-builders",
};

/// A build hook whose build is aborted gets SIGKILL at once.
pub const KILLS_THE_HOOK: Quirk = Quirk {
    versions: "up to 2.34",
    nix: Some((FIRST, Version(2, 35, 0))),
    lix: None,
    difference: "An aborted build kills the hook with SIGKILL. 2.35 sends SIGTERM first.",
    source: "libstore/build/hook-instance.cc",
    handled_in: "the shutdown of sessions in hookrun-builders",
};

/// The daemon reports whether it trusts the client.
pub const TELLS_TRUST: Quirk = Quirk {
    versions: "2.16 and later",
    nix: Some((Version(2, 16, 0), LAST)),
    lix: None,
    difference: "The daemon tells whether it trusts a user.",
    source: "libstore/daemon.cc",
    handled_in: "`hookrun ci`",
};

/// All quirks, in the order of the document.
pub const QUIRKS: [Quirk; 13] = [
    EMPTY_OUT_PATHS,
    PARTIAL_OUT_PATHS,
    EMPTY_OUT_PATHS_OF_CHECK,
    REPEAT,
    IGNORES_BUILD_HOOK,
    LIX_PROTOCOL,
    WHOLE_SPEED_FACTORS,
    OLD_MACHINES_SYNTAX,
    PLAIN_SLOT_NAMES,
    EXIT_CODES,
    SSHOPTS_AT_BLANKS,
    KILLS_THE_HOOK,
    TELLS_TRUST,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_a_row_for_each_quirk_in_the_same_order() {
        let document = include_str!("../../../../docs/nix-versions.md");
        let mut rows = document.lines();
        for Quirk { versions, difference, .. } in QUIRKS {
            let row = format!("| {versions} | {difference}");
            assert!(rows.any(|line| line.starts_with(&row)), "no row `{row}`, or not in order");
        }
    }

    #[test]
    fn a_quirk_has_a_first_version_and_a_first_without_it() {
        let of = |quirk: Quirk, flavour, minor| quirk.applies_to(flavour, Version(2, minor, 0));
        assert!(!of(IGNORES_BUILD_HOOK, Flavour::Nix, 24));
        assert!(of(IGNORES_BUILD_HOOK, Flavour::Nix, 25));
        assert!(of(IGNORES_BUILD_HOOK, Flavour::Nix, 33));
        assert!(!of(IGNORES_BUILD_HOOK, Flavour::Nix, 34));
        assert!(!of(IGNORES_BUILD_HOOK, Flavour::Lix, 30));
        assert!(of(WHOLE_SPEED_FACTORS, Flavour::Lix, 93));
        assert!(!of(WHOLE_SPEED_FACTORS, Flavour::Nix, 20));
    }
}
