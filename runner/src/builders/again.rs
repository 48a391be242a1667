//! The question asked again, for a build that is accepted and waits: the policy may have said how
//! long its answer is good for.

use std::path::Path;
use std::time::Duration;

use super::asker::Asker;
use super::lease::Wanted;
use super::memory::Memory;
use super::pool::{Pool, Present, Standings};
use super::types::{Action, Candidate, Decision, LocalMachine};
use crate::nix::database::Inputs;
use crate::shared::Text;

/// Asks the policy again for a build that is accepted and waits: which machines it may wait for
/// now. `None`: those it waits for.
pub fn ask(
    pool: &mut Pool,
    policy: &mut Asker,
    candidate: &Candidate,
    inputs: &Inputs,
    memory: &mut Memory,
    builders: &Path,
) -> Option<(Vec<Text>, Option<Duration>)> {
    let fitting = pool.fitting(candidate);
    let lines = fitting.iter().filter_map(|index| pool.machines.get(*index));
    let standings = Standings::of(lines, memory);
    let past = memory.past(&candidate.pname, &candidate.system);
    let present = Present::of(inputs.clone(), memory);
    let offered = pool.offered(candidate, &fitting, &standings, &past, &present, builders);
    // It is too late for this machine.
    let local = LocalMachine::default();
    let decision = policy.ask(candidate, &offered.machines, &local);
    policy.rest();
    match decision.ok()? {
        Decision { action: Action::Machines(uris), ask_again_ms, .. } => {
            let wanted: Vec<Wanted> = pool.wanted(&uris, &fitting);
            let machines = wanted.into_iter().map(|wanted| wanted.machine).collect();
            Some((machines, ask_again_ms.map(Duration::from_millis)))
                .filter(|(machines, _): &(Vec<Text>, _)| !machines.is_empty())
        }
        _ => None,
    }
}
