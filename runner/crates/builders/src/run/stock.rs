//! Delegates to Nix's own build hook: `build-remote` of the Nix that called, with one machine to
//! choose from.
//!
//! The stock hook connects, copies, builds and copies back. This file starts it, reads its answer
//! within a time limit, and then relays bytes. After the accept it changes only the machine's name
//! in the output, and it holds the last error back until it is known whether the build goes on
//! elsewhere ([`crate::run::stock_output`]).

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol::request::{Inputs, Request};
use crate::protocol::settings::Settings;
use crate::run::complaints::Complaints;
use crate::run::descendants::{descendants, end_descendants};
use crate::run::shutdown;
use crate::run::stock_names::Names;
use crate::run::stock_output::{DelegationOutcome, OutputClassifier, Timing};
use crate::run::stock_program::StockProgram;
use crate::slots::slot_files::Slot;
use crate::ssh::{Connections, Sharing};
use hookrun_nix::installed::{Flavour, Version};
use hookrun_nix::machines::MachineLine;
use hookrun_nix::process;
use hookrun_system::process::describe_start;

/// Nix's own build hook for one machine.
pub trait StockHook {
    /// Offers `request` to the machine of `target`. Passes lines that are not an answer to `relay`
    /// as they arrive.
    fn offer(
        &mut self,
        settings: &Settings,
        target: Target<'_>,
        request: &Request,
        relay: &mut dyn FnMut(&[u8]),
    ) -> Offer;

    /// Returns the Nix that the hook is part of, if it reports its version. Called at most once in
    /// a session, before the first answer, and only if versions read the machines differently.
    fn version(&mut self) -> Option<(Flavour, Version)> {
        None
    }
}

/// The machine to offer a build to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The line of the machine.
    pub machine: &'a MachineLine,
    /// The slot that this process holds. Without one, Nix's own hook takes one itself.
    pub slot: Option<&'a Slot>,
}

/// The result of an offer.
pub enum Offer {
    /// The machine has accepted: the hook waits for the inputs.
    Accepted(Box<dyn Build>),
    /// It has no slot free: another Nix was faster.
    Full,
    /// The machine cannot be used, with the reason in lower case.
    Failed(String),
    /// Nix's own hook failed on this machine before it tried the other one, with the reason in
    /// lower case.
    Here(String),
}

/// An accepted build.
pub trait Build {
    /// Sends the inputs, relays the output of the hook until its end, and returns the result.
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> DelegationReport;
}

/// The result of an accepted build.
#[derive(Debug, Clone, PartialEq)]
pub struct DelegationReport {
    /// The outcome.
    pub ending: DelegationOutcome,
    /// The hook's exit code.
    pub code: u8,
    /// Errors that were not relayed, unchanged.
    pub held: Vec<Vec<u8>>,
    /// Messages that end open activities.
    pub closing: Vec<u8>,
    /// The times at which stages began.
    pub timing: Timing,
}

/// The length of the longest line before the answer. The longest known one is a list of all
/// machines.
const MAX_LINE: usize = 4 << 20;
/// The interval at which to check whether a child has ended although its standard error is still
/// open (ssh may keep it open).
const REAP_EVERY: Duration = Duration::from_millis(250);
/// The number of bytes that are relayed at once: the capacity of a pipe on Linux.
const CHUNK: usize = 64 << 10;
/// The build hook of the installed Nix.
#[derive(Debug)]
pub(crate) struct InstalledHook {
    /// The program to start.
    pub(crate) program: StockProgram,
    /// The time for a machine to answer.
    pub(crate) deadline: Duration,
    /// Variables that are added to its environment.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Connections that builds share; none if each build has its own.
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
        shutdown::park_if_ending();
        let mut running = match RunningHook::start(self, connections.clone()) {
            Ok(running) => running,
            Err(error) => {
                return Offer::Here(format!(
                    "Nix's own build hook cannot be started: {error}; put `nix` into PATH"
                ));
            }
        };
        running.names = Names::of(&line.uri, &target.machine.uri);
        running.tell(words);
        running.machine.clone_from(&target.machine.uri);
        let offer = running.answer(Instant::now() + self.deadline, self.deadline, relay);
        shutdown::park_if_ending();
        if let (Offer::Failed(_), Some(connections)) = (&offer, connections) {
            connections.retire();
        }
        offer
    }
}

/// A running stock hook. Dropping it ends the hook and all its children.
struct RunningHook {
    child: Child,
    /// The channel to the thread that writes its standard input. Dropping it closes the input.
    feed: Option<Sender<Vec<u8>>>,
    stderr: ChildStderr,
    /// Bytes that were read and not processed yet.
    buffer: Vec<u8>,
    /// The machine's own name.
    machine: String,
    names: Names,
    connections: Option<Connections>,
    ended: bool,
}

impl RunningHook {
    fn start(
        InstalledHook { program, variables, .. }: &InstalledHook,
        connections: Option<Connections>,
    ) -> io::Result<Self> {
        let mut command = program.command();
        let shared = connections.iter().flat_map(|connections| &connections.variables);
        command.envs(variables.iter().chain(shared).map(|(name, value)| (name, value)));
        // Nix's own hook writes nothing to its standard output. Nix would take a line that a
        // wrapper writes there for an answer, so it is dropped.
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = process::inherit_hook_descriptors(&mut command)
            .spawn()
            .map_err(|error| io::Error::other(describe_start(&command, &error)))?;
        let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // A separate thread, so that a child that does not read cannot delay the deadline or the
        // relay.
        let (feed, words) = mpsc::channel::<Vec<u8>>();
        let write = move || words.into_iter().try_for_each(|bytes| stdin.write_all(&bytes));
        std::thread::Builder::new().name("stock hook's input".to_owned()).spawn(write)?;
        Ok(Self {
            child,
            feed: Some(feed),
            stderr,
            buffer: Vec::new(),
            machine: String::default(),
            names: Names::default(),
            connections,
            ended: false,
        })
    }

    fn tell(&self, bytes: Vec<u8>) {
        if let Some(feed) = &self.feed {
            // The end of a child is noticed on its standard error.
            let _ = feed.send(bytes);
        }
    }

    /// Reads the answer.
    fn answer(mut self, until: Instant, patience: Duration, relay: &mut dyn FnMut(&[u8])) -> Offer {
        let mut complaints = Complaints::default();
        loop {
            let line = match self.line(until) {
                Ok(Some(line)) => self.names.with_own_name(&line).into_owned(),
                Ok(None) => {
                    return complaints
                        .without_answer(&format!("{} without an answer", self.how_ended()));
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return self.no_answer(complaints, patience);
                }
                Err(error) => {
                    return complaints
                        .without_answer(&format!("sent an answer that cannot be read ({error})"));
                }
            };
            match line.strip_prefix(b"# ".as_slice()) {
                Some(b"accept\n") => {
                    return match self.line(until) {
                        // The name of the machine is not needed.
                        Ok(Some(_)) => {
                            complaints.lines.iter().for_each(|line| relay(line));
                            Offer::Accepted(Box::new(self))
                        }
                        Ok(None) => complaints
                            .without_answer(&format!("{} within its answer", self.how_ended())),
                        Err(error) => complaints.without_answer(&format!(
                            "sent an answer that cannot be read ({error})"
                        )),
                    };
                }
                // The machine is full, or cannot be reached; in the second case there was a message
                // before.
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

    /// Describes how the hook ended after it closed its standard error.
    fn how_ended(&mut self) -> String {
        // A process that has closed its last stream is about to end.
        let ended = hookrun_system::process::ends_within(&mut self.child, REAP_EVERY);
        match ended.and_then(|ended| if ended { self.child.try_wait() } else { Ok(None) }) {
            Ok(Some(status)) => {
                self.ended = true;
                format!("ended with {status}")
            }
            _ => "closed its standard error".to_owned(),
        }
    }

    /// Returns the result after the time limit. A hook that has not started ssh waits for something
    /// on this machine, such as a lock on Nix's database.
    fn no_answer(&self, complaints: Complaints, patience: Duration) -> Offer {
        let within = format!("no answer within {patience:?} (`connect-timeout` in `[builders]`)");
        let by_ssh = self.machine.starts_with("ssh://") || self.machine.starts_with("ssh-ng://");
        if by_ssh
            && hookrun_system::process::are_children_known()
            && i32::try_from(self.child.id()).map(descendants).is_ok_and(|found| found.is_empty())
        {
            return Offer::Here(format!(
                "Nix's own build hook has not begun to connect: {within}; check whether Nix's database is locked"
            ));
        }
        Offer::Failed(complaints.of_machine().unwrap_or(within))
    }

    /// Returns the next line with its line end, or `None` at the end of the stream.
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

    /// Relays until the end of the stream, or until the child has ended and the pipe is empty.
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
                // Everything that it wrote before its end is in the pipe now.
                patience = Duration::ZERO;
            }
        }
    }

    /// Relays all complete lines, and at the end the rest.
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
            let line = self.names.with_own_name(line);
            if listener.line(&line, now) {
                reply.write_all(&line)?;
            }
        }
        reply.flush()
    }
}

impl Build for RunningHook {
    fn run(mut self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> DelegationReport {
        let mut words = Vec::new();
        // Writing to memory cannot fail.
        let _ = inputs.write(&mut words);
        self.tell(words);
        self.feed = None;
        let mut listener = OutputClassifier::of(self.child.id(), &self.machine);
        let (ending, code) = if self.relay_all(&mut listener, reply).is_ok() {
            let status = self.child.wait();
            self.ended = true;
            match status {
                // After a signal there is no code. Nix reports all failures of the hook in the same
                // way.
                Ok(status) => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    (listener.ending(status), code.unwrap_or(1))
                }
                Err(error) => (
                    DelegationOutcome::Here(format!(
                        "cannot wait for Nix's own build hook ({error})"
                    )),
                    1,
                ),
            }
        } else {
            // Nix does not read any longer, so it would not notice the end of the build.
            (DelegationOutcome::NixGone, 1)
        };
        shutdown::park_if_ending();
        if let (DelegationOutcome::Lost(_), Some(connections)) = (&ending, &self.connections) {
            connections.retire();
        }
        let (held, timing) = (listener.held().to_vec(), listener.timing());
        DelegationReport { ending, code, held, closing: listener.close_activities(), timing }
    }
}

impl Drop for RunningHook {
    fn drop(&mut self) {
        if !self.ended {
            // Nix starts ssh so that it survives its parent (`dieWithParent = false`). An ssh that
            // still tries to connect would keep descriptor 4 open, so Nix would assume that the
            // build continues.
            end_descendants(self.child.id());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests;
