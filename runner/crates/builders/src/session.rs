//! The conversation with Nix: settings, then one `try` after the other until one is accepted
//! (contract of `HookInstance` and `build-remote.cc`, 2.3 to 2.35).
//!
//! Effects come in through [`StockHook`], the two streams and the directories, so that a test can
//! end or garble the conversation at any byte. Every way out of [`Session::run`] has answered each
//! candidate exactly once. Where a candidate goes is worked out in [`place`](super::place); what
//! follows an accept is [`super::delegation`].

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::asker::Asker;
use super::delegation::Delegation;
use super::failover::Question;
use super::lease::Command;
use super::load::SlotFiles;
use super::local;
use super::memory::Memory;
use super::place::{Placed, Placing};
use super::pool::Pool;
use super::queue::Queue;
use super::reply::{Level, Pending};
use super::request::{Inputs, Request};
use super::settings::Settings;
use super::stock::StockHook;
use hookrun_config as config;
use hookrun_nix::event::NixDirs;
use hookrun_nix::machines;
use hookrun_nix::shared::Text;

/// Builds of this machine are looked after once in so long; the next question waits for it.
const SETTLE_EVERY: Duration = Duration::from_secs(2);

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
    /// Where Nix reads them.
    pub nix: BorrowedFd<'a>,
    /// Who carries out.
    pub stock: &'a mut dyn StockHook,
    /// Who chooses; none: Nix's own rule.
    pub policy: Option<Asker>,
    /// Nix's directories, as its environment names them.
    pub nix_dirs: NixDirs,
    /// [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
    pub builders: PathBuf,
    /// `[builders]`.
    pub options: config::Builders,
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
        let found =
            machines::parse_as(settings.builders(), &settings.system(), || self.stock.version());
        for warning in &found.warnings {
            pending.message(Level::Warn, warning);
        }
        pending.withdraw();
        let nix_dirs = settings.dirs_of_store(&self.nix_dirs);
        let slot_files = SlotFiles::below(&nix_dirs.state);
        let limits = self.options.resources.clone();
        let queue =
            Queue::new(&self.builders, slot_files.clone(), Command::of_parent(), limits.clone());
        let mut memory = Memory::new(self.builders.clone(), self.options.retry_after);
        let mut pool = Pool {
            settings,
            machines: found.machines.into(),
            slot_files,
            failed: BTreeSet::new(),
            postponed: HashMap::new(),
            told: false,
            limits,
        };
        let mut settled = None;
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
            let placing = Placing {
                pool: &mut pool,
                memory: &mut memory,
                queue: &queue,
                options: &self.options,
                nix_dirs: &nix_dirs,
                stock: self.stock,
                policy: self.policy.as_mut(),
            };
            let answered = match placing.place(&request, &mut pending) {
                Placed::Never => {
                    let _ = pending.decline_permanently();
                    return End::Closed;
                }
                Placed::Decline => pending.decline(),
                Placed::Postpone => pending.postpone(),
                Placed::Accepted(accepted) => {
                    let Ok(reply) = pending.accept(accepted.name.as_bytes()) else {
                        return End::Closed;
                    };
                    // Nix blocks on writing these until they are read, so they are read whole
                    // before anything else. If they do not come, Nix is gone, or not in step after
                    // an accept: there is no build to save. Dropping it ends it.
                    let Ok(wanted) = Inputs::read(&mut self.input) else { return End::Built(1) };
                    memory.save();
                    let mut policy = self.policy;
                    // Its process is not kept for a build that waits or runs.
                    if let Some(policy) = &mut policy {
                        policy.rest();
                    }
                    let (candidate, inputs) =
                        (accepted.candidate.clone(), accepted.present.inputs.clone());
                    let mut question = Question {
                        pool: pool.clone_for_asking(),
                        policy: policy.as_mut(),
                        candidate: &candidate,
                        inputs: &inputs,
                    };
                    let mut ask_again =
                        |memory: &mut Memory, tried: &BTreeSet<Text>| question.ask(memory, tried);
                    let delegation = Delegation {
                        settings: &pool.settings,
                        machines: &pool.machines,
                        request: &request,
                        stock: self.stock,
                        memory: &mut memory,
                        queue: &queue,
                        nix_dirs: &nix_dirs,
                        nix: self.nix,
                        slot_files: &pool.slot_files,
                        ask_again: &mut ask_again,
                    };
                    let code = delegation.run(*accepted, &wanted, reply);
                    local::settle(&mut memory, &nix_dirs);
                    return End::Built(code);
                }
            };
            memory.save();
            if answered.is_err() {
                return End::Closed;
            }
            if settled.is_none_or(|when: Instant| when.elapsed() >= SETTLE_EVERY) {
                local::settle(&mut memory, &nix_dirs);
                settled = Some(Instant::now());
            }
        }
    }
}

/// The conversation cannot go on: says why; Nix builds without a hook from here on.
fn give_up<W: Write>(mut pending: Pending<'_, W>, why: &str) -> End {
    pending.message(
        Level::Warn,
        &format!("cannot follow Nix ({why}); this command goes on without builder selection"),
    );
    let _ = pending.decline_permanently();
    End::Closed
}

#[cfg(test)]
mod tests;
