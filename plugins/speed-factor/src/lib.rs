//! The bundled policy: builds go to the machine that will finish them first.
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
//! * `local-speed-factor`: the speed of this machine, on the scale of column 5 of the machines
//!   file. Nix has no setting for it. Without it (the default), other machines come before this
//!   one, as in Nix.
//! * `keep-free`: features whose machines are kept free for derivations that require them, while
//!   other machines do nearly as well. By default `big-parallel`, `kvm` and `nixos-test`, the
//!   features that Nixpkgs' large builds and tests require.
//!
//! Hints of the derivation (`hookrunHints`) are obeyed: `local` (build here if this machine can),
//! `machine=URI` (build there if the machine fits), `seconds=N` (the duration at factor 1, until
//! there is a history).
//!
//! The rule is a pure function: equal questions have equal answers.

mod balanced;
mod options;

use hookrun_sdk::BuilderSelection;
use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

pub use balanced::decide;
pub use options::Options;

struct SpeedFactor;

impl BuilderSelection for SpeedFactor {
    fn select(
        candidate: Candidate,
        machines: Vec<Machine>,
        local: LocalMachine,
    ) -> Result<Decision, String> {
        let options: Options = hookrun_sdk::config().map_err(|error| error.message)?;
        Ok(decide(&options, &candidate, &machines, &local))
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
                "description": "The speed of this machine, on the scale of column 5 of the machines file; without it, other machines come first"
            },
            "keep-free": {
                "type": "array",
                "items": { "type": "string" },
                "default": ["big-parallel", "kvm", "nixos-test"],
                "description": "Features whose machines are kept free for derivations that require them, while other machines do nearly as well"
            }
        },
        "additionalProperties": false
    }"#,
}
