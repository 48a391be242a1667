//! Plugins marked `gate = true`: they run inside the post-build hook, and their refusal fails the build.
//!
//! Called by [`crate::role`] after the event has been handed over, so that a gate that is killed costs no other plugin its
//! event. This is the one place on the hook path where guests run, and the one that may return anything but 0: closed on
//! whatever the gate itself does (refuses, traps, reaches a limit, does not load), open on what is not its doing (no
//! readable configuration), which `hookrun check` tells.

use std::io::Write as _;

use crate::capability::Services;
use crate::config::{Config, Plugin};
use crate::dirs::Dirs;
use crate::event::{Event, HookKind};
use crate::exit_code::Exit;
use crate::outcome::Outcome;
use crate::plugin::Host;
use crate::plugin::executor::admits;

/// Runs the gates on `event`.
pub fn run(event: &Event) -> Exit {
    let dirs = Dirs::from_env();
    // Most installations have no gate: then neither parser nor engine is touched.
    let mentioned = std::fs::read(&dirs.config).is_ok_and(|text| text.windows(4).any(|word| word == b"gate"));
    if !mentioned {
        return Exit::Done;
    }
    let Ok(config) = Config::load(&dirs.config) else { return Exit::Done };
    let is_gate = |plugin: &&Plugin| {
        plugin.gate && (plugin.hooks.is_empty() || plugin.hooks.contains(&HookKind::PostBuild)) && admits(plugin, event)
    };
    let gates: Vec<&Plugin> = config.plugins.values().filter(is_gate).collect();
    if gates.is_empty() {
        return Exit::Done;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("no gate could run ({error})"));
            return Exit::Failed;
        }
    };
    let host = Host::new(&dirs);
    let services = Services::new(&config, &dirs);
    for gate in gates {
        let outcome = match host.load(gate, &config) {
            Ok(plugin) => runtime.block_on(plugin.run_event(&services, event, 1)).outcome,
            Err(error) => Outcome::Refused { message: error.to_string() },
        };
        if !matches!(outcome, Outcome::Done { .. }) {
            say(&format!(
                "the gate `{}` stops the build at {}: {} (to build without it, remove `gate = true` under [plugins.{}] in {})",
                gate.name,
                event.name(),
                outcome.message(),
                gate.name,
                config.path.display(),
            ));
            return Exit::Failed;
        }
    }
    Exit::Done
}

/// One line on standard error, which Nix shows.
fn say(message: &str) {
    // Nobody may be listening.
    let _said = writeln!(std::io::stderr(), "hookrun: {}", message.replace('\n', " "));
}
