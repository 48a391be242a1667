//! A guest that attacks its host. `config.act` names the attack. Each family of attacks has a
//! module.
//!
//! An act that tries to reach something fails with the message of the host if it is refused, and
//! returns a result that begins with `ESCAPED` if it is not. So the outcome of the run is enough
//! for a test.

#![expect(unsafe_code, reason = "attacks forge handles and break the rules of strings")]
#![expect(
    clippy::unnecessary_wraps,
    clippy::needless_pass_by_value,
    reason = "all acts have one form"
)]

mod acts;
mod bombs;
mod floods;
mod giants;
mod handles;
mod outside;
mod reach;
mod startup;
mod words;

use acts::Act;
use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};
use hookrun_sdk::{
    BuilderSelection, Diff, Failure, Outcome, PostBuild, Wants, config, diff, log, post_build,
};

struct Hostile;

/// The paths of the event, which acts use.
struct Here {
    /// The derivation.
    drv: String,
    /// An output.
    out: String,
    /// The store directory.
    store: String,
}

impl Here {
    /// Returns `text` with `{drv}`, `{out}` and `{store}` replaced.
    fn fill(&self, text: &str) -> String {
        text.replace("{drv}", &self.drv).replace("{out}", &self.out).replace("{store}", &self.store)
    }
}

/// Returns a result for something that the guest must not reach.
fn escaped(what: impl std::fmt::Display) -> Result<Outcome, Failure> {
    Ok(Outcome::new(format!("ESCAPED: {what}")))
}

fn act(here: &Here) -> Result<Outcome, Failure> {
    let act: Act = config()?;
    act.play(here)
}

impl PostBuild for Hostile {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let out = event.outputs.first().map(|output| output.path.clone()).unwrap_or_default();
        act(&Here { drv: event.drv_path, out, store: event.store_dir })
    }
}

impl Diff for Hostile {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        act(&Here { drv: event.drv_path, out: event.previous_path, store: event.store_dir })
    }
}

impl BuilderSelection for Hostile {
    fn select(candidate: Candidate, _: Vec<Machine>, _: LocalMachine) -> Result<Decision, String> {
        let act: Act = config().map_err(|error| error.message)?;
        if let Act::Choose { uri, times } = &act {
            log::info(format!("choosing for {}", candidate.name));
            return Ok(Decision::machines(std::iter::repeat_n(uri.clone(), *times), "because"));
        }
        let here = Here { drv: candidate.drv_path, out: String::new(), store: String::new() };
        act.play(&here)
            .map(|outcome| Decision::decline(outcome.message))
            .map_err(|failure| failure.message)
    }
}

hookrun_sdk::plugin! {
    plugin: Hostile,
    hooks: [PostBuild, Diff, BuilderSelection],
    // The least of scopes, so that a generous grant gives no more; everything else as granted.
    wants: Wants::EVERYTHING,
}
