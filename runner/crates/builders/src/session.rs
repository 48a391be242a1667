//! The conversation with Nix: settings, then one `try` after the other until one is accepted (the
//! protocol of `HookInstance` and `build-remote.cc`, 2.3 to 2.35).
//!
//! Effects are passed in ([`StockHook`], the two streams and the directories), so that a test can
//! end or change the conversation at any byte. However [`Session::run`] ends, each candidate was
//! answered exactly once. [`decide`](crate::choice::decide) finds the answer, and
//! [`crate::run::delegate`] contains the steps after an accept.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::choice::answer::Answer;
use crate::choice::decide::Decider;
use crate::choice::policy_thread::PolicyThread;
use crate::choice::pool::Pool;
use crate::history::History;
use crate::protocol::reply::{Level, Pending};
use crate::protocol::request::{Inputs, Request};
use crate::protocol::settings::Settings;
use crate::run::delegate::{Accepted, Delegation};
use crate::run::failover::Question;
use crate::run::local_builds;
use crate::run::stock::StockHook;
use crate::slots::sessions::Command;
use crate::slots::slot_files::SlotFiles;
use crate::slots::wait::Queue;
use hookrun_config as config;
use hookrun_nix::event::NixDirs;
use hookrun_nix::machines;

/// The interval at which the ends of local builds are recorded. The next question waits meanwhile.
const SETTLE_EVERY: Duration = Duration::from_secs(2);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nix has no more questions, or its messages cannot be read.
    Closed,
    /// A build was delegated and ended with this exit code.
    Built(u8),
}

/// A session.
pub struct Session<'a, R, W> {
    /// The requests of Nix.
    pub input: R,
    /// The replies to Nix.
    pub reply: W,
    /// The stream that Nix reads.
    pub nix: BorrowedFd<'a>,
    /// Nix's own hook.
    pub stock: &'a mut dyn StockHook,
    /// The policy; none if Nix's own rule chooses.
    pub policy: Option<PolicyThread>,
    /// Nix's directories according to its environment.
    pub nix_dirs: NixDirs,
    /// [`Dirs::builders`](hookrun_nix::dirs::Dirs::builders).
    pub builders: PathBuf,
    /// `[builders]`.
    pub options: config::Builders,
}

/// The values that follow from the settings of Nix.
struct Opened {
    nix_dirs: NixDirs,
    queue: Queue,
    history: History,
    pool: Pool,
}

/// A build whose accept was sent to Nix.
struct AcceptedRequest<'r> {
    accepted: Accepted,
    request: &'r Request,
    inputs: Inputs,
}

impl<R: Read, W: Write> Session<'_, R, W> {
    /// Runs the session to its end.
    pub fn run(mut self) -> End {
        let mut opened = match self.open() {
            Ok(opened) => opened,
            Err(end) => return end,
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
            let decider = Decider {
                pool: &mut opened.pool,
                history: &mut opened.history,
                queue: &opened.queue,
                options: &self.options,
                nix_dirs: &opened.nix_dirs,
                stock: self.stock,
                policy: self.policy.as_mut(),
            };
            let answered = match decider.decide(&request, &mut pending) {
                Answer::Never => {
                    let _ = pending.decline_permanently();
                    return End::Closed;
                }
                Answer::Declined(_) => pending.decline(),
                Answer::Postponed(_) => pending.postpone(),
                Answer::Accepted(accepted) => {
                    let Ok(reply) = pending.accept(accepted.name.as_bytes()) else {
                        return End::Closed;
                    };
                    // Nix blocks on writing these until they are read, so all of them are read
                    // first. If they do not arrive, Nix has exited or sends something else. The
                    // build cannot continue, and dropping it ends it.
                    let Ok(inputs) = Inputs::read(&mut self.input) else { return End::Built(1) };
                    let taken = AcceptedRequest { accepted: *accepted, request: &request, inputs };
                    let Self { stock, policy, nix, .. } = self;
                    return End::Built(opened.delegate(taken, stock, policy, nix, reply));
                }
            };
            opened.history.save();
            if answered.is_err() {
                return End::Closed;
            }
            if settled.is_none_or(|when: Instant| when.elapsed() >= SETTLE_EVERY) {
                local_builds::settle(&mut opened.history, &opened.nix_dirs);
                settled = Some(Instant::now());
            }
        }
    }

    /// Reads Nix's settings.
    fn open(&mut self) -> Result<Opened, End> {
        let mut pending = Pending::new(&mut self.reply);
        let settings = match Settings::read(&mut self.input) {
            Ok(Some(settings)) => settings,
            Ok(None) => {
                pending.withdraw();
                return Err(End::Closed);
            }
            Err(error) => return Err(give_up(pending, &error.to_string())),
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
        let history = History::new(self.builders.clone(), self.options.retry_after);
        let pool = Pool {
            settings,
            machines: found.machines.into(),
            slot_files,
            failed: BTreeSet::new(),
            postponed: HashMap::new(),
            told: false,
            limits,
        };
        Ok(Opened { nix_dirs, queue, history, pool })
    }
}

impl Opened {
    /// Runs an accepted build. Returns the exit code for Nix.
    fn delegate(
        mut self,
        AcceptedRequest { accepted, request, inputs }: AcceptedRequest<'_>,
        stock: &mut dyn StockHook,
        mut policy: Option<PolicyThread>,
        nix: BorrowedFd<'_>,
        reply: &mut dyn Write,
    ) -> u8 {
        self.history.save();
        // The policy's process is not needed for a build that waits or runs.
        if let Some(policy) = &mut policy {
            policy.stop();
        }
        let candidate = accepted.candidate.clone();
        let mut question = Question {
            pool: self.pool.clone_for_asking(),
            policy: policy.as_mut(),
            candidate: &candidate,
            inputs: &accepted.present.inputs.clone(),
        };
        let mut ask_again =
            |history: &mut History, tried: &BTreeSet<String>| question.ask(history, tried);
        let delegation = Delegation {
            settings: &self.pool.settings,
            machines: &self.pool.machines,
            request,
            stock,
            history: &mut self.history,
            queue: &self.queue,
            nix_dirs: &self.nix_dirs,
            nix,
            slot_files: &self.pool.slot_files,
            ask_again: &mut ask_again,
        };
        let code = delegation.run(accepted, &inputs, reply);
        local_builds::settle(&mut self.history, &self.nix_dirs);
        code
    }
}

/// Ends a conversation that cannot continue with a message. Nix then builds without a hook.
fn give_up<W: Write>(mut pending: Pending<'_, W>, why: &str) -> End {
    pending.message(
        Level::Warn,
        &format!("cannot read the messages of Nix ({why}); this command continues without builder selection"),
    );
    let _ = pending.decline_permanently();
    End::Closed
}

#[cfg(test)]
mod tests;
