//! The steps of the demo, one file each.

mod builders;
mod nondeterminism;
mod substitute;
mod upload;

use anyhow::Result;

use super::Verdict;
use super::stage::Stage;

/// One step.
pub(super) struct Step {
    /// What it shows.
    pub(super) title: &'static str,
    /// Shows it. An error is a step that does not work.
    pub(super) run: fn(&mut Stage) -> Result<Verdict>,
}

/// All of them, in order.
pub(super) const ALL: [Step; 4] = [
    Step { title: "post-build-hook: what Nix builds is uploaded, signed", run: upload::run },
    Step {
        title: "an empty second store takes it back, signatures required",
        run: substitute::run,
    },
    Step {
        title: "diff-hook: a second build differs, and a mail says how",
        run: nondeterminism::run,
    },
    Step { title: "build-hook: a policy chooses the builder", run: builders::run },
];
