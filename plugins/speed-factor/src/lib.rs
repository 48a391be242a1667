//! The bundled policy: which machine will have a build done first, or Nix's own rule.
//!
//! # Configuration
//!
//! ```toml
//! [plugins.policy]
//! source = "bundled:speed-factor"
//! hooks = ["builder-selection"]
//! config = { mode = "balanced", local-speed-factor = 2.0 }
//! ```
//!
//! * `mode`: `balanced` (the default) or `stock`, which answers what Nix's own hook would, to the
//!   bit; for comparison, and for those who want hookrun's failover without another order.
//! * `local-speed-factor`: how fast this machine is, on the scale of column 5 of the machines file.
//!   Nix has no place to say it. Without it (the default) machines come before this one, as in Nix.
//! * `keep-free`: features whose machines are kept for those who require them, as long as others do
//!   nearly as well. `big-parallel`, `kvm` and `nixos-test` by default: with these the machines of
//!   Nixpkgs' large builds and tests are marked.
//!
//! `balanced` also obeys hints of the derivation (`hookrunHints`): `local` (build here if this
//! machine can), `machine=URI` (there if it fits), `seconds=N` (how long it takes at factor 1,
//! until there is a history).
//!
//! The rules are pure functions; the same question has the same answer. [`balanced`] and [`stock`]
//! are what the simulator runs, too.

pub mod balanced;
mod options;
pub mod stock;

use hookrun_sdk::BuilderSelection;
use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

pub use options::{Mode, Options};

/// Where to build.
pub fn decide(
    options: &Options,
    candidate: &Candidate,
    machines: &[Machine],
    local: &LocalMachine,
) -> Decision {
    match options.mode {
        Mode::Balanced => balanced::decide(options, candidate, machines, local),
        Mode::Stock => stock::decide(candidate, machines, local),
    }
}

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
            "mode": {
                "enum": ["balanced", "stock"],
                "default": "balanced",
                "description": "`balanced`: the machine that will have it done first; `stock`: what Nix's own hook would answer"
            },
            "local-speed-factor": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "How fast this machine is, on the scale of column 5 of the machines file; without it, machines come first"
            },
            "keep-free": {
                "type": "array",
                "items": { "type": "string" },
                "default": ["big-parallel", "kvm", "nixos-test"],
                "description": "Features whose machines are kept for derivations that require them, while others do nearly as well"
            }
        },
        "additionalProperties": false
    }"#,
}
