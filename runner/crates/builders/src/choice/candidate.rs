//! The facts about one candidate, collected once before the policy is asked: the derivation, this
//! machine, the wait of the build, and the health of the machines.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::choice::drv_attributes::described;
use crate::choice::pool::{Availabilities, Pool, Present};
use crate::history::History;
use crate::history::now_ms;
use crate::protocol::request::Request;
use crate::run::local_builds;
use crate::slots::wait::{Queue, Waiting};
use hookrun_nix::database::Database;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{Candidate, LocalMachine};

/// The time to wait for a lock on Nix's database. Nix is blocked meanwhile, and the result is
/// optional.
const DATABASE_PATIENCE: Duration = Duration::from_millis(200);
/// The number of paths that are read to find the inputs of a build. Most closures have some
/// hundreds; reading this many takes some milliseconds.
const MOST_INPUTS: usize = 5000;
/// The number of the largest inputs that are looked for on machines. They contain nearly all bytes.
const LARGEST_INPUTS: usize = 64;
/// The number of machines up to which inputs are looked for; with more it would take longer than it
/// saves.
const MOST_COMPARED: usize = 500;
/// The number of derivations that are read to find those that depend on one. Reading this many
/// takes some milliseconds, while Nix is blocked.
const MOST_DEPENDENTS: usize = 2000;

/// A candidate that has no answer yet.
pub(crate) struct OpenCandidate<'r> {
    pub(crate) request: &'r Request,
    pub(crate) candidate: Candidate,
    pub(crate) local: LocalMachine,
    /// Whether a local build would start immediately.
    pub(crate) begins_here: bool,
    pub(crate) waiting: Waiting,
    pub(crate) availabilities: Availabilities,
    /// Its inputs, and the machines that have them.
    pub(crate) present: Present,
    /// The file that Nix keeps locked while it builds the derivation.
    pub(crate) lock: Option<String>,
    /// Machines that did not take the build, with the reason.
    pub(crate) skipped: BTreeMap<String, String>,
    /// Machines that turned out to be full. They are not asked again for this candidate.
    pub(crate) full: Vec<String>,
}

impl<'r> OpenCandidate<'r> {
    /// Collects the facts about the derivation in `request`. Nix is blocked meanwhile.
    pub(crate) fn of(
        request: &'r Request,
        pool: &Pool,
        history: &mut History,
        queue: &Queue,
        nix_dirs: &NixDirs,
    ) -> Self {
        let (mut candidate, derivation) = described(request.candidate(), nix_dirs);
        let past = history.past(&candidate.pname, &candidate.system);
        candidate.expected_seconds = past.expected_seconds;
        let database = Database::open_within(nix_dirs, DATABASE_PATIENCE).ok();
        let drv_path = candidate.drv_path.as_str();
        let depth = database
            .as_ref()
            .and_then(|database| database.dependents_depth(drv_path, MOST_DEPENDENTS).ok());
        let inputs = database.and_then(|database| {
            database.inputs(drv_path, MOST_INPUTS, LARGEST_INPUTS).ok().flatten()
        });
        candidate.dependents_depth = depth;
        candidate.input_bytes = inputs.as_ref().map(|inputs| inputs.bytes);
        let command = queue.command().to_string();
        let mut local = pool.settings.local_machine(
            &candidate.system,
            &candidate.required_features,
            request.am_willing(),
        );
        local.waiting = u32::try_from(queue.waiting()).unwrap_or(u32::MAX);
        local.past = history.past_local(&candidate.pname, &candidate.system);
        // Nix asks about all builds that are ready before it starts the first local one, and
        // reports a free slot for each.
        local.running = if local.able && local.willing {
            local_builds::running(history, &command, &candidate.drv_path)
        } else {
            0
        };
        let begins_here = local.willing && local.running < local.slots;
        let waiting = Waiting {
            drv_path: candidate.drv_path.clone(),
            name: candidate.name.clone(),
            depth,
            expected_seconds: candidate.expected_seconds,
            since_ms: now_ms(),
            takes: queue.limits().takes(&candidate.required_features),
        };
        let fitting = pool.fitting(&candidate);
        let lines = fitting.iter().filter_map(|index| pool.machines.get(*index));
        let availabilities = Availabilities::of(lines, history);
        // Nothing has to be sent to a machine that fetches inputs from its own substituters.
        let can_tell = !pool.settings.builders_use_substitutes() && fitting.len() <= MOST_COMPARED;
        let inputs = inputs.filter(|_| can_tell).unwrap_or_default();
        let present = Present::of(inputs, history);
        let lock =
            derivation.as_ref().and_then(|derivation| local_builds::lock_of(derivation, nix_dirs));
        Self {
            request,
            candidate,
            local,
            begins_here,
            waiting,
            availabilities,
            present,
            lock,
            skipped: BTreeMap::new(),
            full: Vec::new(),
        }
    }
}
