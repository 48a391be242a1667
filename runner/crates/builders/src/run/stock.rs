//! Delegation to Nix's own build hook: `build-remote` of the very Nix that called, with one machine
//! to choose from.
//!
//! The stock hook connects, copies, builds and copies back; this file starts it, listens for its
//! answer within a time limit, and then carries bytes. It changes nothing that the stock hook says
//! after its accept, but for the machine's name, and it keeps its last error back until it is known
//! whether the build goes on elsewhere ([`super::speech`]).

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol::request::{Inputs, Request};
use crate::protocol::settings::Settings;
use crate::run::descendants::{are_children_known, descendants, end_descendants};
use crate::run::shutdown;
use crate::run::stock_names::Names;
use crate::run::stock_output::{Ending, OutputClassifier, Timing, is_about_machine, plain};
use crate::run::stock_program::StockProgram;
use crate::slots::slot_files::Slot;
use crate::ssh::{Connections, Sharing};
use hookrun_nix::installed::{Flavour, Version};
use hookrun_nix::machines::MachineLine;
use hookrun_nix::process;
use hookrun_nix::shared::Text;

/// Nix's own build hook, started for one machine.
pub trait StockHook {
    /// Offers `request` to the one machine of `target`. Lines that are no answer go to `relay` as
    /// they come.
    fn offer(
        &mut self,
        settings: &Settings,
        target: Target<'_>,
        request: &Request,
        relay: &mut dyn FnMut(&[u8]),
    ) -> Offer;

    /// Which Nix it is part of, if it says so. Called at most once in a session, before the first
    /// answer, and only if versions read the machines differently.
    fn version(&mut self) -> Option<(Flavour, Version)> {
        None
    }
}

/// The machine to offer a build to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its line.
    pub machine: &'a MachineLine,
    /// The slot on it that this process holds; without one Nix's own hook takes one itself.
    pub slot: Option<&'a Slot>,
}

/// What became of an offer.
pub enum Offer {
    /// The machine takes it: the hook waits for the inputs.
    Accepted(Box<dyn Build>),
    /// It has no slot free: another Nix was faster.
    Full,
    /// The machine cannot be used; why, as a lower-case fragment.
    Failed(String),
    /// Nix's own hook failed on this machine, before it had tried the other one; why, as a
    /// lower-case fragment.
    Here(String),
}

/// An accepted build.
pub trait Build {
    /// Hands over the inputs, relays what the hook says until its end, and reports.
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> Report;
}

/// How an accepted build ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What it means.
    pub ending: Ending,
    /// The hook's exit code.
    pub code: u8,
    /// Errors that were not relayed, as they came.
    pub held: Vec<Vec<u8>>,
    /// What ends the activities that are still open.
    pub closing: Vec<u8>,
    /// When things began.
    pub timing: Timing,
}

/// Longest line before the answer; the longest known is the list of all machines in a message.
const MAX_LINE: usize = 4 << 20;
/// How often a child is asked whether it ended although its standard error is still open (ssh may
/// keep it).
const REAP_EVERY: Duration = Duration::from_millis(250);
/// Bytes carried at once: a pipe's capacity on Linux.
const CHUNK: usize = 64 << 10;
/// Starts the stock hook.
#[derive(Debug)]
pub(crate) struct InstalledHook {
    /// What to start.
    pub(crate) program: StockProgram,
    /// How long a machine may take to answer.
    pub(crate) deadline: Duration,
    /// Variables for it, beside its environment.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Connections that builds share; none: each has its own.
    pub(crate) sharing: Option<Sharing>,
}

impl StockHook for InstalledHook {
    fn version(&mut self) -> Option<(Flavour, Version)> {
        self.program.version()
    }

    fn offer(
        &mut self,
        settings: &Settings,
        target: Target<'_>,
        request: &Request,
        relay: &mut dyn FnMut(&[u8]),
    ) -> Offer {
        let line =
            target.slot.map_or_else(|| target.machine.clone(), |slot| slot.line(target.machine));
        let mut words = Vec::new();
        // Writing to memory cannot fail.
        let _ = settings
            .write(&mut words, &line.line_for_stock_hook())
            .and_then(|()| request.write(&mut words));
        let connections = self.sharing.as_ref().and_then(|sharing| sharing.of(&target.machine.uri));
        shutdown::stand_still_if_ending();
        let mut running = match Running::start(self, connections.clone()) {
            Ok(running) => running,
            Err(error) => {
                let program = self.program.path().display();
                return Offer::Here(format!(
                    "Nix's own build hook `{program}` cannot be started ({error}); put `nix` into PATH"
                ));
            }
        };
        running.names = Names::of(&line.uri, &target.machine.uri);
        running.tell(words);
        running.machine.clone_from(&target.machine.uri);
        let offer = running.answer(Instant::now() + self.deadline, self.deadline, relay);
        shutdown::stand_still_if_ending();
        if let (Offer::Failed(_), Some(connections)) = (&offer, connections) {
            connections.retire();
        }
        offer
    }
}

/// A started stock hook. Dropping it ends it, with everything it started.
struct Running {
    child: Child,
    /// To the thread that writes its standard input; dropping this closes it.
    feed: Option<Sender<Vec<u8>>>,
    stderr: ChildStderr,
    /// What was read and not yet looked at.
    buffer: Vec<u8>,
    /// The machine's own name.
    machine: Text,
    names: Names,
    connections: Option<Connections>,
    ended: bool,
}

impl Running {
    fn start(
        InstalledHook { program, variables, .. }: &InstalledHook,
        connections: Option<Connections>,
    ) -> io::Result<Self> {
        let mut command = program.command();
        let shared = connections.iter().flat_map(|connections| &connections.variables);
        command.envs(variables.iter().chain(shared).map(|(name, value)| (name, value)));
        // Nix's own hook says nothing on its standard output, and Nix would take a line of a
        // wrapper there for an answer: it must not reach Nix unread.
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = process::bequeath(&mut command).spawn()?;
        let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // Its own thread, so that a child that does not read cannot hold up the deadline or the
        // relay.
        let (feed, words) = mpsc::channel::<Vec<u8>>();
        let write = move || words.into_iter().try_for_each(|bytes| stdin.write_all(&bytes));
        std::thread::Builder::new().name("stock hook's input".to_owned()).spawn(write)?;
        Ok(Self {
            child,
            feed: Some(feed),
            stderr,
            buffer: Vec::new(),
            machine: Text::default(),
            names: Names::default(),
            connections,
            ended: false,
        })
    }

    fn tell(&self, bytes: Vec<u8>) {
        if let Some(feed) = &self.feed {
            // A child that is gone is noticed at its standard error.
            let _ = feed.send(bytes);
        }
    }

    /// Listens for the answer.
    fn answer(mut self, until: Instant, patience: Duration, relay: &mut dyn FnMut(&[u8])) -> Offer {
        let mut complaints = Complaints::default();
        loop {
            let line = match self.line(until) {
                Ok(Some(line)) => self.names.as_people_say(&line).into_owned(),
                Ok(None) => return complaints.without_answer("ended without an answer"),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return self.no_answer(complaints, patience);
                }
                Err(error) => {
                    return complaints.without_answer(&format!("cannot be understood ({error})"));
                }
            };
            match line.strip_prefix(b"# ".as_slice()) {
                Some(b"accept\n") => {
                    return match self.line(until) {
                        // Its name for the machine is not of interest.
                        Ok(Some(_)) => {
                            complaints.lines.iter().for_each(|line| relay(line));
                            Offer::Accepted(Box::new(self))
                        }
                        _ => complaints.without_answer("ended inside its answer"),
                    };
                }
                // Full, or not to be reached: then it has said so.
                Some(b"postpone\n" | b"decline\n") => {
                    return complaints.of_machine().map_or(Offer::Full, Offer::Failed);
                }
                Some(other) => {
                    let other = String::from_utf8_lossy(other);
                    return complaints.without_answer(&format!("answered `{}`", other.trim_end()));
                }
                None => {
                    if !complaints.takes(&line) {
                        relay(&line);
                    }
                }
            }
        }
    }

    /// The time is over. A hook that has not even started ssh still waits for something of this
    /// machine, such as a lock on Nix's database.
    fn no_answer(&self, complaints: Complaints, patience: Duration) -> Offer {
        let within = format!("no answer within {patience:?} (`connect-timeout` in `[builders]`)");
        let by_ssh = self.machine.starts_with("ssh://") || self.machine.starts_with("ssh-ng://");
        if by_ssh && are_children_known() && descendants(self.child.id()).is_empty() {
            return Offer::Here(format!(
                "Nix's own build hook has not begun to connect: {within}; is Nix's database locked?"
            ));
        }
        Offer::Failed(complaints.of_machine().unwrap_or(within))
    }

    /// The next line with its end; `None` at the end of the stream.
    fn line(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer.iter().skip(searched).position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(searched + end + 1);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(io::Error::other("a line without end"));
            }
            let left =
                until.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
            if !self.readable(left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if self.read_more()? == 0 {
                return Ok(None);
            }
        }
    }

    fn readable(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.stderr, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let before = self.buffer.len();
        self.buffer.resize(before + CHUNK, 0);
        let result = loop {
            match self.stderr.read(self.buffer.get_mut(before..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(before + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// Relays until the end of the stream, or until the child ended and nothing is left in the
    /// pipe.
    fn relay_all(
        &mut self,
        listener: &mut OutputClassifier,
        reply: &mut dyn Write,
    ) -> io::Result<()> {
        let mut patience = REAP_EVERY;
        loop {
            self.relay_lines(listener, reply, false)?;
            if self.readable(patience)? {
                if self.read_more()? == 0 {
                    return self.relay_lines(listener, reply, true);
                }
            } else if patience.is_zero() {
                return self.relay_lines(listener, reply, true);
            } else if self.child.try_wait()?.is_some() {
                // What it wrote before it ended is in the pipe by now.
                patience = Duration::ZERO;
            }
        }
    }

    /// Relays all whole lines, and at the end what is left.
    fn relay_lines(
        &mut self,
        listener: &mut OutputClassifier,
        reply: &mut dyn Write,
        all: bool,
    ) -> io::Result<()> {
        let whole = self.buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let end = if all || self.buffer.len() > MAX_LINE { self.buffer.len() } else { whole };
        let rest = self.buffer.split_off(end);
        let heard = std::mem::replace(&mut self.buffer, rest);
        let now = Instant::now();
        for line in heard.split_inclusive(|byte| *byte == b'\n') {
            let line = self.names.as_people_say(line);
            if listener.line(&line, now) {
                reply.write_all(&line)?;
            }
        }
        reply.flush()
    }
}

impl Build for Running {
    fn run(mut self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> Report {
        let mut words = Vec::new();
        // Writing to memory cannot fail.
        let _ = inputs.write(&mut words);
        self.tell(words);
        self.feed = None;
        let mut listener = OutputClassifier::of(self.child.id(), &self.machine);
        let (ending, code) = if self.relay_all(&mut listener, reply).is_ok() {
            let status = self.child.wait();
            self.ended = true;
            // A signal has no code; Nix reports any failure of the stock hook alike.
            let code = status.ok().and_then(|status| status.code());
            (listener.ending(code), code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        } else {
            // Nobody would learn of the build's end.
            (Ending::NixGone, 1)
        };
        shutdown::stand_still_if_ending();
        if let (Ending::Lost(_), Some(connections)) = (&ending, &self.connections) {
            connections.retire();
        }
        let (held, timing) = (listener.held().to_vec(), listener.timing());
        Report { ending, code, held, closing: listener.close_activities(), timing }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // Nix starts ssh so that it survives its parent (`dieWithParent = false`), and an ssh
            // that still tries to connect would keep descriptor 4 open, which Nix takes for a build
            // that goes on.
            end_descendants(self.child.id());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Lines of ssh that are repeated for a machine that cannot be reached: the last ones tell why.
const SSH_LINES: usize = 3;

/// What the stock hook says before its answer, kept back from the client until it is known whether
/// it matters.
#[derive(Debug, Default)]
struct Complaints {
    /// What it says against the machine.
    machine: Option<String>,
    /// Its first error that is not about the machine.
    error: Option<String>,
    /// The first warning.
    warning: Option<String>,
    /// The last lines of what is not Nix's: for `ssh-ng://` what ssh says comes by itself.
    ssh: Vec<String>,
    /// All messages as they came, for a machine that is used all the same.
    lines: Vec<Vec<u8>>,
}

impl Complaints {
    /// Keeps an error or a warning of the stock hook. `false` for every other line.
    fn takes(&mut self, line: &[u8]) -> bool {
        let Some(json) = line.strip_prefix(b"@nix ".as_slice()) else {
            self.ssh.push(plain(&String::from_utf8_lossy(line)));
            self.ssh.retain(|line| !line.is_empty());
            self.ssh.drain(..self.ssh.len().saturating_sub(SSH_LINES));
            return false;
        };
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
        if message.get("action").and_then(|action| action.as_str()) != Some("msg") {
            return false;
        }
        let text = message
            .get("raw_msg")
            .or_else(|| message.get("msg"))
            .and_then(|text| text.as_str())
            .unwrap_or_default();
        let place = match message.get("level").and_then(serde_json::Value::as_u64) {
            Some(0) if is_about_machine(text) => &mut self.machine,
            Some(0) => &mut self.error,
            Some(1) => &mut self.warning,
            _ => return false,
        };
        place.get_or_insert_with(|| plain(text));
        self.lines.push(line.to_vec());
        true
    }

    /// What was said against the machine, with ssh's reason.
    fn of_machine(self) -> Option<String> {
        let why = self.machine?;
        let said = self.ssh.into_iter().filter(|line| !why.contains(line.as_str()));
        let said = said.collect::<Vec<_>>().join("; ");
        Some(if said.is_empty() { why } else { format!("{why}: {said}") })
    }

    /// The hook has `done` this instead of giving an answer. Whatever keeps it from one is not the
    /// machine: of a machine that it cannot use it says so, and declines.
    fn without_answer(self, done: &str) -> Offer {
        if self.machine.is_some() {
            return self.of_machine().map_or(Offer::Full, Offer::Failed);
        }
        let said = self.error.or(self.warning);
        Offer::Here(said.unwrap_or_else(|| format!("Nix's own build hook {done}")))
    }
}

#[cfg(test)]
mod tests;
