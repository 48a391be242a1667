//! The bundled policy: Nix's own rule (lowest load divided by speed factor, then the higher factor, then the lower load, then
//! the first in the list), with factors that may be fractions on every Nix, machines that failed lately last, and, if asked
//! for, this machine as one of them.
//!
//! # Configuration
//!
//! ```toml
//! [plugins.policy]
//! source = "bundled:speed-factor"
//! hooks = ["builder-selection"]
//! config = { local-speed-factor = 2.0 }
//! ```
//!
//! `local-speed-factor`: how fast this machine is, on the scale of column 5 of the machines file. With it, a derivation that
//! this machine can build right now stays here unless a machine with a free slot is better by the rule; an idle machine beats
//! an idle machine by its factor. Without it (the default) machines always come before this one, as in Nix.

mod rule;

use hookrun_sdk::BuilderSelection;
use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

pub use rule::{Options, decide};

struct SpeedFactor;

impl BuilderSelection for SpeedFactor {
    fn select(candidate: Candidate, machines: Vec<Machine>, local: LocalMachine) -> Result<Decision, String> {
        let options: Options = hookrun_sdk::config().map_err(|error| error.message)?;
        Ok(decide(options, &candidate, &machines, &local))
    }
}

hookrun_sdk::plugin! {
    plugin: SpeedFactor,
    hooks: [BuilderSelection],
    config_schema: r#"{
        "type": "object",
        "properties": {
            "local-speed-factor": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "How fast this machine is, on the scale of column 5 of the machines file; without it, machines come first"
            }
        },
        "additionalProperties": false
    }"#,
}
