//! The conversation with Nix: settings, then one `try` after the other until one is accepted (contract of `HookInstance` and
//! `build-remote.cc`, 2.3 to 2.35).
//!
//! Effects come in through [`StockHook`] and the two streams, so that a test can end or garble the conversation at any byte.
//! Every way out of [`Session::run`] has answered each candidate exactly once.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::PathBuf;

use super::asker::Asker;
use super::described::described;
use super::load::SlotFiles;
use super::policy::StockRule;
use super::reply::{Level, Pending};
use super::request::{Inputs, Request};
use super::settings::Settings;
use super::types::{Action, Candidate, Decision, LocalMachine, Machine};
use crate::nix::machines::{self, MachineLine};

/// Nix's own build hook, started for one machine.
pub trait StockHook {
    /// Offers `request` to the one machine of `line`. Lines that are no answer go to `relay` as they come.
    fn offer(&mut self, settings: &Settings, line: &str, request: &Request, relay: &mut dyn FnMut(&[u8])) -> Offer;
}

/// What became of an offer.
pub enum Offer {
    /// The machine takes it; `name` is what to call it.
    Accepted {
        /// The text after `# accept`.
        name: Vec<u8>,
        /// The hook, waiting for the inputs.
        build: Box<dyn Build>,
    },
    /// It has no slot free: another Nix was faster.
    Full,
    /// It cannot be used; why, as a lower-case fragment.
    Failed(String),
}

/// An accepted build.
pub trait Build {
    /// Hands over the inputs, relays what the hook says until its end, and returns its exit code.
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> u8;
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nix has no more questions, or cannot be talked to.
    Closed,
    /// A build was delegated and ended with this exit code.
    Built(u8),
}

/// One session.
pub struct Session<'a, R, W> {
    /// Nix's requests.
    pub input: R,
    /// Our replies.
    pub reply: W,
    /// Who carries out.
    pub stock: &'a mut dyn StockHook,
    /// Who chooses; none: Nix's own rule.
    pub policy: Option<Asker>,
    /// Nix's state directory, as its environment names it.
    pub nix_state: PathBuf,
}

/// What the settings say, worked out once.
struct Pool {
    settings: Settings,
    machines: Vec<MachineLine>,
    slot_files: SlotFiles,
    /// Indexes of machines that failed in this session. Nix's own hook forgets them with the process too.
    failed: BTreeSet<usize>,
    /// The policy's failure has been told.
    told: bool,
}

impl<R: Read, W: Write> Session<'_, R, W> {
    /// Plays it to its end.
    pub fn run(mut self) -> End {
        let mut pending = Pending::new(&mut self.reply);
        let settings = match Settings::read(&mut self.input) {
            Ok(Some(settings)) => settings,
            Ok(None) => {
                pending.withdraw();
                return End::Closed;
            }
            Err(error) => return give_up(pending, &error.to_string()),
        };
        let found = machines::parse(&settings.builders(), &settings.system());
        for warning in &found.warnings {
            pending.message(Level::Warn, warning);
        }
        pending.withdraw();
        let state = settings.state_dir_of_store().unwrap_or_else(|| self.nix_state.clone());
        let mut pool = Pool {
            settings,
            machines: found.machines,
            slot_files: SlotFiles::below(&state),
            failed: BTreeSet::new(),
            told: false,
        };
        loop {
            let mut pending = Pending::new(&mut self.reply);
            let request = match Request::read(&mut self.input) {
                Ok(Some(request)) => request,
                Ok(None) => {
                    pending.withdraw();
                    return End::Closed;
                }
                Err(error) => return give_up(pending, &error.to_string()),
            };
            let answered = match pool.place(&request, self.stock, self.policy.as_mut(), &mut pending) {
                Placed::Never => {
                    let _ = pending.decline_permanently();
                    return End::Closed;
                }
                Placed::Decline => pending.decline(),
                Placed::Postpone => pending.postpone(),
                Placed::On(name, build) => {
                    let Ok(reply) = pending.accept(&name) else { return End::Closed };
                    // Nix blocks on writing these until they are read, so they are read whole before anything else.
                    return match Inputs::read(&mut self.input) {
                        Ok(inputs) => End::Built(build.run(&inputs, reply)),
                        // Nix is gone, or not in step after an accept: there is no build to save. Dropping `build` ends it.
                        Err(_) => End::Built(1),
                    };
                }
            };
            if answered.is_err() {
                return End::Closed;
            }
        }
    }
}

/// The conversation cannot go on: says why; Nix builds without a hook from here on.
fn give_up<W: Write>(mut pending: Pending<'_, W>, why: &str) -> End {
    pending.message(Level::Warn, &format!("cannot follow Nix ({why}); this command goes on without builder selection"));
    let _ = pending.decline_permanently();
    End::Closed
}

/// Where a candidate goes.
enum Placed {
    On(Vec<u8>, Box<dyn Build>),
    Decline,
    Postpone,
    Never,
}

impl Pool {
    fn place<W: Write>(
        &mut self,
        request: &Request,
        stock: &mut dyn StockHook,
        mut policy: Option<&mut Asker>,
        pending: &mut Pending<'_, W>,
    ) -> Placed {
        // As Nix's own hook; no policy can change it.
        if self.machines.is_empty() {
            return Placed::Never;
        }
        let candidate = described(request.candidate());
        let local = self.settings.local_machine(&candidate.system, &candidate.required_features, request.am_willing());
        // Each round but the last takes at least one machine out.
        loop {
            let fitting = self.fitting(&candidate);
            if fitting.is_empty() {
                pending.message(if local.able { Level::Chatty } else { Level::Warn }, &self.nobody(&candidate));
                return Placed::Decline;
            }
            let offered = self.offered(&fitting);
            let decision = self.decide(&candidate, &offered, &local, policy.as_deref_mut(), pending);
            let Decision { action, reason, .. } = decision;
            let uris = match action {
                Action::Machines(uris) => uris,
                Action::Local | Action::Decline => {
                    pending.message(Level::Talkative, &format!("{} is left to this machine: {reason}", candidate.name));
                    return Placed::Decline;
                }
                Action::Postpone => {
                    pending.message(Level::Talkative, &format!("{} waits: {reason}", candidate.name));
                    return Placed::Postpone;
                }
            };
            pending.message(Level::Talkative, &format!("{} goes to {}: {reason}", candidate.name, uris.join(", then ")));
            let before = self.failed.len();
            // Two lines with one URI are two machines to Nix; both are tried, in their order.
            let ranked: Vec<usize> = uris
                .iter()
                .flat_map(|uri| {
                    fitting.iter().copied().filter(|index| self.machines.get(*index).is_some_and(|m| m.uri == *uri))
                })
                .collect();
            for index in ranked {
                let Some(machine) = self.machines.get(index) else { continue };
                match stock.offer(&self.settings, &machine.line_for_stock_hook(), request, &mut |line| pending.relay(line)) {
                    Offer::Accepted { name, build } => return Placed::On(name, build),
                    Offer::Full => {}
                    Offer::Failed(why) => {
                        pending.message(Level::Warn, &format!("machine {} skipped: {why}", machine.uri));
                        self.failed.insert(index);
                    }
                }
            }
            if self.failed.len() == before {
                return match StockRule::without_machine(&candidate, fitting.len(), &local).action {
                    Action::Postpone => Placed::Postpone,
                    _ => Placed::Decline,
                };
            }
        }
    }

    /// Indexes of the machines that can take the candidate and have not failed.
    fn fitting(&self, candidate: &Candidate) -> Vec<usize> {
        let fits = |(index, machine): &(usize, &MachineLine)| {
            !self.failed.contains(index) && machine.fits(&candidate.system, &candidate.required_features)
        };
        self.machines.iter().enumerate().filter(fits).map(|(index, _)| index).collect()
    }

    /// Those machines with their load, as a policy sees them.
    fn offered(&self, fitting: &[usize]) -> Vec<Machine> {
        let lines: Vec<&MachineLine> = fitting.iter().filter_map(|index| self.machines.get(*index)).collect();
        let loads = self.slot_files.loads(lines.iter().map(|line| (line.uri.as_str(), line.max_jobs)));
        let machine = |(line, load): (&MachineLine, u32)| Machine {
            uri: line.uri.clone(),
            slots: line.max_jobs,
            load,
            speed_factor: line.speed_factor,
            supported_features: line.supported_features.iter().cloned().collect(),
            mandatory_features: line.mandatory_features.iter().cloned().collect(),
            ..Machine::default()
        };
        lines.into_iter().zip(loads).map(machine).collect()
    }

    fn decide<W: Write>(
        &mut self,
        candidate: &Candidate,
        offered: &[Machine],
        local: &LocalMachine,
        policy: Option<&mut Asker>,
        pending: &mut Pending<'_, W>,
    ) -> Decision {
        match policy.map(|policy| policy.ask(candidate, offered, local)) {
            Some(Ok(decision)) => return decision,
            Some(Err(error)) if !self.told => {
                self.told = true;
                let text = format!("the builder-selection policy gave no answer ({error}); Nix's own rule is used");
                pending.message(Level::Warn, &text);
            }
            Some(Err(_)) | None => {}
        }
        StockRule { division: self.settings.division() }.decide(candidate, offered, local)
    }

    /// Why no machine is left, in one line.
    fn nobody(&self, candidate: &Candidate) -> String {
        let Candidate { name, system, required_features, .. } = candidate;
        let features = if required_features.is_empty() { "no features".to_owned() } else { required_features.join(", ") };
        let (all, failed) = (self.machines.len(), self.failed.len());
        format!(
            "no machine can take {name} ({system}, {features}): of {all}, {failed} cannot be used and {} do not fit",
            all - failed
        )
    }
}

#[cfg(test)]
mod tests;
