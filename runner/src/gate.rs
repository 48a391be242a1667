//! Plugins with `gate = true`: they run inside the post-build hook, and their refusal fails the
//! build.
//!
//! Called by [`crate::role`] after the event has been handed over, so that other plugins get the
//! event even if a gate is killed. Only gates run inside the process of a hook. A gate that
//! refuses, traps, reaches a limit or does not load fails the build. Other problems, such as an
//! unreadable configuration, do not; `hookrun check` reports them.

use crate::supervise::needs;
use crate::supervise::runner::Readied;
use crate::supervise::supervisor::admits;
use hookrun_capability::Services;
use hookrun_config::{Config, ConfigText, Plugin};
use hookrun_host::wall::Wall;
use hookrun_host::{Compiler, Host};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookKind};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::outcome::Outcome;
use hookrun_queue::envelope;
use hookrun_queue::guard::HookResult;

/// Runs the gates on an event that a hook has handed over.
pub fn run(handed_over: &HookResult) -> Exit {
    // Most installations have no gate. In that case neither the parser nor the engine is used.
    if !handed_over.may_have_gate() {
        return Exit::Done;
    }
    let dirs = Dirs::from_env();
    let text = handed_over
        .configuration()
        .or_else(|| ConfigText::in_force(&dirs).ok().filter(ConfigText::may_have_gate));
    let (Some(text), Some(sealed)) = (text, handed_over.event()) else { return Exit::Done };
    let (Ok(config), Ok(event)) = (text.parse(), envelope::open(&sealed)) else {
        return Exit::Done;
    };
    let event = &event;
    let is_gate = |plugin: &&Plugin| {
        plugin.gate
            && (plugin.hooks.is_empty() || plugin.hooks.contains(&HookKind::PostBuild))
            && admits(plugin, event)
    };
    let gates: Vec<&Plugin> = config.plugins.values().filter(is_gate).collect();
    if gates.is_empty() {
        return Exit::Done;
    }
    let result = match gates.first() {
        // Compiled code is in the state directory too, and reading it might never return.
        Some(first) if !handed_over.in_time => {
            Err((first.name.as_str(), "the state directory did not answer in time".to_owned()))
        }
        _ => refusal(event, &config, &dirs, &gates),
    };
    match result {
        Ok(()) => Exit::Done,
        Err((gate, reason)) => {
            say(&format!(
                "the gate `{gate}` stops the build at {}: {reason} (to build without it, remove `gate = true` under [plugins.{gate}] in {})",
                event.name(),
                config.path.display(),
            ));
            Exit::Failed
        }
    }
}

/// Runs `gates` one after the other in this process. The process is not needed for anything else,
/// so it becomes a runner, with [`needs`] and [`hookrun_host::wall`] as in a worker's runner. The
/// error contains the gate that refuses, and the reason.
fn refusal<'a>(
    event: &Event,
    config: &Config,
    dirs: &Dirs,
    gates: &[&'a Plugin],
) -> Result<(), (&'a str, String)> {
    let first = gates.first().map_or("", |gate| gate.name.as_str());
    let all = |reason: String| (first, reason);
    let names: Vec<String> = gates.iter().map(|gate| gate.name.clone()).collect();
    // Nix is blocked, so nothing is compiled here.
    let host = Host::new(dirs, Compiler::Disabled);
    let mut own = config.clone();
    own.plugins.retain(|name, _| names.contains(name));
    let services = Services::new(&own, dirs);
    let readied = Readied::new(own, services, &host, &names, true);
    readied.compile_for_next_hook(dirs);
    let identity = needs::identity(config).map_err(all)?;
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let wall =
        needs::wall(&readied.effective(), readied.services(), dirs, &event.nix, identity, variable);
    needs::make_directories(&wall, dirs).map_err(all)?;
    Wall { required: config.worker.require_sandbox, ..wall }
        .raise()
        .map_err(|error| all(error.to_string()))?;
    let running = readied.link();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| all(format!("it cannot run ({error})")))?;
    for gate in gates {
        let outcome = runtime.block_on(running.run(&gate.name, event, 1)).outcome;
        if !matches!(outcome, Outcome::Done { .. }) {
            return Err((&gate.name, outcome.message().to_owned()));
        }
    }
    Ok(())
}

/// Prints one line on standard error, which Nix shows.
fn say(message: &str) {
    hookrun_nix::terminal::say(&hookrun_nix::terminal::printable(&message.replace('\n', " ")));
}
