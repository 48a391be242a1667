//! Delegation to Nix's own build hook: `build-remote` of the very Nix that called, with one machine to choose from.
//!
//! The stock hook connects, copies, builds and copies back; this file starts it, listens for its answer within a time limit,
//! and then carries bytes. It changes nothing that the stock hook says after its accept.

use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::fds;
use super::request::{Inputs, Request};
use super::session::{Build, Offer, StockHook};
use super::settings::Settings;

/// Longest line before the answer; the longest known is the list of all machines in a message.
const MAX_LINE: usize = 4 << 20;
/// How often a child is asked whether it ended although its standard error is still open (ssh may keep it).
const REAP_EVERY: Duration = Duration::from_millis(250);
/// Bytes carried at once: a pipe's capacity on Linux.
const CHUNK: usize = 64 << 10;
/// The programs that are one binary, which is `build-remote` too if called so. Others (nix-eval-jobs, Hydra) only use Nix's
/// library.
const NIX_PROGRAMS: [&str; 13] = [
    "nix",
    "nix-build",
    "nix-channel",
    "nix-collect-garbage",
    "nix-copy-closure",
    "nix-daemon",
    "nix-env",
    "nix-hash",
    "nix-instantiate",
    "nix-prefetch-url",
    "nix-shell",
    "nix-store",
    "build-remote",
];

/// The stock hook as a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockProgram {
    program: PathBuf,
    name: &'static str,
    arguments: Vec<String>,
}

impl StockProgram {
    /// That of the Nix that called this process, or else the `nix` in `PATH`.
    pub fn of_caller(verbosity: u64) -> Self {
        let link = rustix::process::getppid().map(|pid| PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero())));
        let is_nix = |link: &PathBuf| {
            let target = std::fs::read_link(link).ok()?;
            // A Nix that was upgraded while it runs.
            let name = target.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
            NIX_PROGRAMS.contains(&name.as_str()).then_some(())
        };
        // Since 2.0 the binary plays the role that argv[0] names.
        let as_build_remote = |program| Self { program, name: "build-remote", arguments: vec![verbosity.to_string()] };
        if let Some(program) = link.filter(|link| is_nix(link).is_some()) {
            return as_build_remote(program);
        }
        match nix_in_path() {
            Some(program) if !is_script(&program) => as_build_remote(program),
            // A wrapper script loses argv[0]; `__build-remote` is there since 2.10.
            program => {
                let arguments = vec!["__build-remote".to_owned(), verbosity.to_string()];
                Self { program: program.unwrap_or_else(|| PathBuf::from("nix")), name: "nix", arguments }
            }
        }
    }

    /// For tests: any program.
    #[cfg(test)]
    pub(super) fn other(program: &str, arguments: &[&str]) -> Self {
        Self { program: program.into(), name: "sh", arguments: arguments.iter().map(|word| (*word).to_owned()).collect() }
    }
}

fn nix_in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let executable =
        |program: &PathBuf| program.is_file() && rustix::fs::access(program.as_path(), rustix::fs::Access::EXEC_OK).is_ok();
    std::env::split_paths(&path).map(|directory| directory.join("nix")).find(executable)
}

fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(program).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

/// Starts the stock hook.
#[derive(Debug)]
pub struct Delegate {
    /// What to start.
    pub program: StockProgram,
    /// How long a machine may take to answer.
    pub deadline: Duration,
}

impl StockHook for Delegate {
    fn offer(&mut self, settings: &Settings, line: &str, request: &Request, relay: &mut dyn FnMut(&[u8])) -> Offer {
        let mut words = Vec::new();
        // Writing to memory cannot fail.
        let _ = settings.write(&mut words, line).and_then(|()| request.write(&mut words));
        let running = match Running::start(&self.program) {
            Ok(running) => running,
            Err(error) => {
                let program = self.program.program.display();
                return Offer::Failed(format!(
                    "Nix's own build hook `{program}` cannot be started ({error}); put `nix` into PATH"
                ));
            }
        };
        running.tell(words);
        running.answer(Instant::now() + self.deadline, self.deadline, relay)
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
    ended: bool,
}

impl Running {
    fn start(program: &StockProgram) -> io::Result<Self> {
        let StockProgram { program, name, arguments } = program;
        let mut command = Command::new(program);
        std::os::unix::process::CommandExt::arg0(&mut command, name).args(arguments);
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(reply_stream()?);
        let mut child = fds::bequeath(&mut command).spawn()?;
        let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // Its own thread, so that a child that does not read cannot hold up the deadline or the relay.
        let (feed, words) = mpsc::channel::<Vec<u8>>();
        let write = move || words.into_iter().try_for_each(|bytes| stdin.write_all(&bytes));
        std::thread::Builder::new().name("stock hook's input".to_owned()).spawn(write)?;
        Ok(Self { child, feed: Some(feed), stderr, buffer: Vec::new(), ended: false })
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
                Ok(Some(line)) => line,
                Ok(None) => return Offer::Failed(complaints.or("Nix's own build hook ended without an answer")),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Offer::Failed(
                        complaints.or(&format!("no answer within {patience:?} (`connect-timeout` in `[builders]`)")),
                    );
                }
                Err(error) => return Offer::Failed(complaints.or(&format!("its answer cannot be read ({error})"))),
            };
            match line.strip_prefix(b"# ".as_slice()) {
                Some(b"accept\n") => {
                    return match self.line(until) {
                        Ok(Some(mut name)) => {
                            complaints.lines.iter().for_each(|line| relay(line));
                            name.pop_if(|last| *last == b'\n');
                            Offer::Accepted { name, build: Box::new(self) }
                        }
                        _ => Offer::Failed(complaints.or("Nix's own build hook ended inside its answer")),
                    };
                }
                // Full, or not to be reached: an error was printed then ("cannot build on ...").
                Some(b"postpone\n" | b"decline\n") => {
                    return complaints.error.take().map_or(Offer::Full, Offer::Failed);
                }
                Some(other) => {
                    let other = String::from_utf8_lossy(other);
                    return Offer::Failed(complaints.or(&format!("Nix's own build hook answered `{}`", other.trim_end())));
                }
                None => {
                    if !complaints.takes(&line) {
                        relay(&line);
                    }
                }
            }
        }
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
            let left = until.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
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

    /// Relays until the end of the stream, or until the child ended and nothing is left in the pipe.
    fn relay_all(&mut self, reply: &mut dyn Write) -> io::Result<()> {
        let mut patience = REAP_EVERY;
        loop {
            reply.write_all(&self.buffer)?;
            reply.flush()?;
            self.buffer.clear();
            if self.readable(patience)? {
                if self.read_more()? == 0 {
                    return Ok(());
                }
            } else if patience.is_zero() {
                return Ok(());
            } else if self.child.try_wait()?.is_some() {
                // What it wrote before it ended is in the pipe by now.
                patience = Duration::ZERO;
            }
        }
    }
}

impl Build for Running {
    fn run(mut self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> u8 {
        let mut words = Vec::new();
        // Writing to memory cannot fail.
        let _ = inputs.write(&mut words);
        self.tell(words);
        self.feed = None;
        if self.relay_all(reply).is_err() {
            // Nix is gone, or the pipe is broken: nobody would learn of the build's end.
            return 1;
        }
        let status = self.child.wait();
        self.ended = true;
        // A signal has no code; Nix reports any failure of the stock hook alike.
        status.ok().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // Nix starts ssh so that it survives its parent (`dieWithParent = false`), and an ssh that still tries to connect
            // would keep descriptor 4 open, which Nix takes for a build that goes on.
            for pid in descendants(self.child.id()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All processes started by `pid` and by those, deepest first. Linux only; elsewhere none.
fn descendants(pid: u32) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_ascii_whitespace().filter_map(|text| text.parse::<u32>().ok()) {
        found.extend(descendants(child));
        found.extend(i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw));
    }
    found
}

/// Our standard error, which is where a child's standard output goes: our own standard output is the same pipe, but a
/// careless `println!` somewhere must not find it.
fn reply_stream() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(io::stderr().as_fd(), 6)?)
}

/// What the stock hook says against a machine, kept back from the client until it is known whether it matters.
#[derive(Debug, Default)]
struct Complaints {
    /// The first error.
    error: Option<String>,
    /// The first warning.
    warning: Option<String>,
    /// All of them as they came, for a machine that is used all the same.
    lines: Vec<Vec<u8>>,
}

impl Complaints {
    /// Keeps an error or a warning of the stock hook. `false` for every other line.
    fn takes(&mut self, line: &[u8]) -> bool {
        let Some(json) = line.strip_prefix(b"@nix ".as_slice()) else { return false };
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
        if message.get("action").and_then(|action| action.as_str()) != Some("msg") {
            return false;
        }
        let text = message.get("raw_msg").or_else(|| message.get("msg")).and_then(|text| text.as_str()).unwrap_or_default();
        let place = match message.get("level").and_then(serde_json::Value::as_u64) {
            Some(0) => &mut self.error,
            Some(1) => &mut self.warning,
            _ => return false,
        };
        place.get_or_insert_with(|| plain(text));
        self.lines.push(line.to_vec());
        true
    }

    fn or(&mut self, otherwise: &str) -> String {
        self.error.take().or_else(|| self.warning.take()).unwrap_or_else(|| otherwise.to_owned())
    }
}

/// A message of Nix as one plain line: without colours, line ends and the words that only repeat which machine it is.
fn plain(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ECMA-48: ESC [ parameters, up to a letter.
            let _ = characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            bare.push(character);
        }
    }
    let line = bare.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let reason = line.strip_prefix("cannot build on '").and_then(|rest| rest.split_once("': "));
    let reason = reason.map_or(line, |(_, reason)| reason);
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

#[cfg(test)]
mod tests;
