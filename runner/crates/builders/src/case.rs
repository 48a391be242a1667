//! One candidate on its way: what it is, how it would wait, what machines there are for it. Put
//! together once, before the policy is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use super::described::described;
use super::local;
use super::memory::Memory;
use super::pool::{Pool, Present, Standings};
use super::queue::{Queue, Waiting};
use super::record::now_ms;
use super::request::Request;
use hookrun_nix::database::Database;
use hookrun_nix::event::NixDirs;
use hookrun_nix::selection::{Candidate, LocalMachine};
use hookrun_nix::shared::Text;

/// How long a lock on Nix's database is waited for: Nix is blocked meanwhile, and what it says is
/// only a help.
const DATABASE_PATIENCE: Duration = Duration::from_millis(200);
/// Paths looked at to find what a build needs; most closures have some hundreds. Takes some
/// milliseconds.
const MOST_INPUTS: usize = 5000;
/// Of these the largest are looked for on machines: nearly all bytes are in a few.
const LARGEST_INPUTS: usize = 64;
/// Among more machines than this nobody looks where inputs lie: it would take longer than it saves.
const MOST_COMPARED: usize = 500;
/// The name, among the details of this machine, of the number of builds that this command was told
/// to do here and that run or are about to.
const RUNNING: &str = "running";
/// Derivations looked at to find what waits behind one. Takes some milliseconds; Nix stands still
/// meanwhile.
const MOST_DEPENDENTS: usize = 2000;

/// One candidate on its way.
pub struct Case<'r> {
    /// The question.
    pub request: &'r Request,
    /// What is to be built.
    pub candidate: Candidate,
    /// This machine.
    pub local: LocalMachine,
    /// Would it begin here at once?
    pub begins_here: bool,
    /// How it waits, if it does.
    pub waiting: Waiting,
    /// How the machines stand.
    pub standings: Standings,
    /// What it needs, and where that is.
    pub present: Present,
    /// The file that Nix holds locked while it builds it.
    pub lock: Option<String>,
    /// Machines that were tried in vain, with the reason.
    pub skipped: BTreeMap<String, String>,
    /// Machines that have said that they are full although they seemed not to be: not asked again
    /// for this candidate.
    pub full: Vec<Text>,
}

impl<'r> Case<'r> {
    /// What `request` asks for, with what is known of it now. Nix stands still meanwhile.
    pub fn of(
        request: &'r Request,
        pool: &Pool,
        memory: &mut Memory,
        queue: &Queue,
        nix_dirs: &NixDirs,
    ) -> Self {
        let (mut candidate, derivation) = described(request.candidate(), nix_dirs);
        let past = memory.past(&candidate.pname, &candidate.system);
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
        local.past = memory.past_local(&candidate.pname, &candidate.system);
        // Nix asks for all builds that are ready before it starts the first of those that it is to
        // do itself, and says of each that it has a slot.
        let running = if local.able && local.willing {
            local::running(memory, &command, &candidate.drv_path)
        } else {
            0
        };
        local.details.push((RUNNING.to_owned(), running.to_string()));
        let begins_here = local.willing && running < local.slots;
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
        let standings = Standings::of(lines, memory);
        // A machine that fetches what it needs from elsewhere misses nothing that we would have to
        // send.
        let can_tell = !pool.settings.builders_use_substitutes() && fitting.len() <= MOST_COMPARED;
        let inputs = inputs.filter(|_| can_tell).unwrap_or_default();
        let present = Present::of(inputs, memory);
        let lock = derivation.as_ref().and_then(|derivation| local::lock_of(derivation, nix_dirs));
        Self {
            request,
            candidate,
            local,
            begins_here,
            waiting,
            standings,
            present,
            lock,
            skipped: BTreeMap::new(),
            full: Vec::new(),
        }
    }
}
