//! The steps of the demo, one file each.

mod builders;
mod nondeterminism;
mod substitute;
mod upload;

use anyhow::Result;

use super::StepResult;
use super::stage::Stage;

pub(super) struct Step {
    /// The title, which says what the step shows.
    pub(super) title: &'static str,
    /// Runs the step. An error means that the step failed.
    pub(super) run: fn(&mut Stage) -> Result<StepResult>,
}

/// All steps, in order.
pub(super) const ALL: [Step; 4] = [
    Step { title: "post-build-hook: what Nix builds is uploaded, signed", run: upload::run },
    Step {
        title: "an empty second store substitutes it, with signatures required",
        run: substitute::run,
    },
    Step {
        title: "diff-hook: a second build differs, and a mail describes the difference",
        run: nondeterminism::run,
    },
    Step { title: "build-hook: a policy chooses the builder", run: builders::run },
];
