//! Child processes that handle untrusted bytes: bounded in time, memory and output, in a sandbox
//! without files and network. Input and result are passed in memory.
//!
//! Called by [`super::compile`] and [`super::examine`] before this process enters its own sandbox,
//! in which it can start no process.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::wall::{Identity, User, Wall};

/// How much of what the child says is read.
const MAX_SAID: u64 = 4 << 10;

/// What a child may use.
#[derive(Debug, Clone, clap::Args)]
pub struct Bounds {
    /// Bytes of memory
    #[arg(long, value_name = "N")]
    pub memory: u64,
    /// Seconds of processor time, all threads together
    #[arg(long = "cpu", value_name = "N")]
    pub processor: u64,
    /// Bytes of output
    #[arg(long, value_name = "N")]
    pub output: u64,
    /// Who to become
    #[arg(long)]
    pub user: Option<String>,
}

/// How a child ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was stopped.
    TimeUp,
    /// By itself, or by its other bounds.
    Exited {
        /// Its status.
        status: ExitStatus,
        /// What it handed over.
        output: Vec<u8>,
        /// The beginning of its standard error.
        said: String,
    },
}

/// Runs the hidden command `command` of this program on `input`, for at most `time`. Where this
/// process is root it becomes the user of `bounds`.
pub(super) fn run(
    command: &[&str],
    bounds: &Bounds,
    environment: &[(&str, &str)],
    input: &[&[u8]],
    time: Duration,
) -> io::Result<Ended> {
    // Files in memory and no pipes: nobody has to be read from and written to at once, so one
    // thread is enough.
    let (mut given, mut output, mut said) =
        (memory_file("input")?, memory_file("output")?, memory_file("said")?);
    for part in input {
        given.write_all(part)?;
    }
    given.rewind()?;
    let Bounds { memory, processor, output: most, user } = bounds;
    let mut child = Command::new("/proc/self/exe");
    child
        .arg0("hookrun")
        .args(command)
        .args(["--memory", &memory.to_string()])
        .args(["--cpu", &processor.to_string()])
        .args(["--output", &most.to_string()])
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir("/")
        .stdin(given)
        .stdout(output.try_clone()?)
        .stderr(said.try_clone()?);
    if let Some(user) = user.as_ref().filter(|_| rustix::process::geteuid().is_root()) {
        child.args(["--user", user]);
    }
    let mut child = child.spawn()?;
    match wait(&child, time) {
        Ok(true) => {}
        stopped => {
            child.kill()?;
            child.wait()?;
            return stopped.map(|_| Ended::TimeUp);
        }
    }
    let status = child.wait()?;
    said.rewind()?;
    let mut text = Vec::new();
    let _partly = said.take(MAX_SAID).read_to_end(&mut text);
    output.rewind()?;
    let mut handed_over = Vec::new();
    if status.success() {
        output.read_to_end(&mut handed_over)?;
    }
    let said = String::from_utf8_lossy(&text).into_owned();
    Ok(Ended::Exited { status, output: handed_over, said })
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

/// Returns whether the child has ended in this time.
fn wait(child: &std::process::Child, time: Duration) -> io::Result<bool> {
    let process = rustix::process::Pid::from_child(child);
    let ended: OwnedFd = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
    let mut events = [PollFd::new(&ended, PollFlags::IN)];
    let begun = std::time::Instant::now();
    loop {
        let left = time.saturating_sub(begun.elapsed());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut events, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Puts this process, which is such a child, behind its wall and its bounds.
pub(super) fn confine(bounds: &Bounds) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let identity = match &bounds.user {
        Some(name) => Identity::User(
            User::find(name).map_err(|error| format!("`user` under [worker]: {error}"))?,
        ),
        None => Identity::Powerless,
    };
    // Its parent bounds its time, and waits on the thread that started this process.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| text(&error))?;
    let bound = |resource, current: u64, maximum: u64| {
        // Whoever started hookrun may allow less.
        let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit =
            Rlimit { current: Some(current.min(allowed)), maximum: Some(maximum.min(allowed)) };
        setrlimit(resource, limit).map_err(|error| text(&error))
    };
    // Memory that is written to; address space alone is free, and thread-local heaps reserve much
    // of it.
    bound(Resource::Data, bounds.memory, bounds.memory)?;
    // The kernel kills without a word at the second.
    bound(Resource::Cpu, bounds.processor, bounds.processor.saturating_add(1))?;
    bound(Resource::Fsize, bounds.output, bounds.output)?;
    Wall::closed(identity).raise().map_err(|error| text(&error))?;
    Ok(())
}
