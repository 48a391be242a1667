//! Child processes that handle untrusted bytes. Their time, memory and output are bounded, and
//! their sandbox has no files and no network. Input and output are passed in memory.
//!
//! [`super::compile`] and [`super::examine`] call this module before this process enters its own
//! sandbox, in which it cannot start processes.

use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use hookrun_system::{memory, process};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::wall::{Identity, User, Wall};

/// Maximum number of bytes that are read from the child's standard error.
const MAX_SAID: u64 = 4 << 10;

/// The fix for a child that failed without a message.
const CHECK_SYSTEM: &str = "check that there is enough memory and that /proc is mounted";

/// Limits of a child process.
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
    /// The user to run as
    #[arg(long)]
    pub user: Option<String>,
}

#[derive(Debug)]
pub(super) enum ChildResult {
    /// The child exceeded its wall time and was killed.
    TimeUp,
    /// The child exited or was stopped by its other limits.
    Exited {
        status: ExitStatus,
        /// The content of its standard output.
        output: Vec<u8>,
        /// The beginning of its standard error.
        said: String,
    },
}

impl ChildResult {
    /// Describes a failed child for a message: its exit code or signal, and its own message.
    pub(super) fn describe(status: ExitStatus, said: &str) -> String {
        let end = process::describe_end(status, said);
        if said.trim().is_empty() {
            format!("its process {end}; {CHECK_SYSTEM}")
        } else {
            format!("its process {end}")
        }
    }
}

/// Runs the hidden command `command` of this program on `input` for at most `time`. If this process
/// is root, the child changes to the user of `bounds`.
///
/// # Errors
/// Returns a message if the child cannot be started or waited for.
pub(super) fn run(
    command: &[&str],
    bounds: &Bounds,
    environment: &[(&str, &str)],
    input: &[&[u8]],
    time: Duration,
) -> io::Result<ChildResult> {
    run_program(process::this_program(), command, bounds, environment, input, time)
}

fn run_program(
    mut child: Command,
    command: &[&str],
    bounds: &Bounds,
    environment: &[(&str, &str)],
    input: &[&[u8]],
    time: Duration,
) -> io::Result<ChildResult> {
    // Files in memory are used instead of pipes, so that one thread is enough: pipes would have to
    // be read and written at the same time.
    let (mut given, mut output, mut said) =
        (memory::file("input")?, memory::file("output")?, memory::file("said")?);
    for part in input {
        given.write_all(part)?;
    }
    given.rewind()?;
    let Bounds { memory, processor, output: most, user } = bounds;
    child
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
    let mut child = child.spawn().map_err(|error| {
        let why = process::describe_start(&child, &error);
        let message = format!("its process cannot be started: {why}; {CHECK_SYSTEM}");
        io::Error::new(error.kind(), message)
    })?;
    match process::ends_within(&mut child, time) {
        Ok(true) => {}
        stopped => {
            child.kill()?;
            child.wait()?;
            return stopped.map(|_| ChildResult::TimeUp);
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
    Ok(ChildResult::Exited { status, output: handed_over, said })
}

/// Puts this process, which is such a child, into its sandbox and sets its limits.
pub(super) fn confine(bounds: &Bounds) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let identity = match &bounds.user {
        Some(name) => Identity::User(
            User::find(name).map_err(|error| format!("`user` under [worker]: {error}"))?,
        ),
        None => Identity::Powerless,
    };
    // The parent limits the time of this process and waits on the thread that started it.
    process::die_with_parent().map_err(|error| text(&error))?;
    let bound = |resource, current: u64, maximum: u64| {
        // The limits of the process that started hookrun may be lower.
        let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit =
            Rlimit { current: Some(current.min(allowed)), maximum: Some(maximum.min(allowed)) };
        setrlimit(resource, limit).map_err(|error| text(&error))
    };
    // `Resource::Data` limits writable memory. Address space alone is not limited, because
    // thread-local heaps reserve much of it.
    bound(Resource::Data, bounds.memory, bounds.memory)?;
    // At the soft limit the kernel sends SIGXCPU, at the hard limit it kills the process.
    bound(Resource::Cpu, bounds.processor, bounds.processor.saturating_add(1))?;
    bound(Resource::Fsize, bounds.output, bounds.output)?;
    Wall::closed(identity).raise().map_err(|error| text(&error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str) -> io::Result<ChildResult> {
        let bounds = Bounds { memory: 1 << 20, processor: 1, output: 1 << 10, user: None };
        run_program(
            Command::new(program),
            &["compile-one"],
            &bounds,
            &[],
            &[],
            Duration::from_secs(9),
        )
    }

    #[test]
    fn a_child_that_cannot_be_started_is_named_with_the_reason() {
        let error = run("/no/such/program").unwrap_err();
        insta::assert_snapshot!(error, @"its process cannot be started: /no/such/program (No such file or directory (os error 2)); check that there is enough memory and that /proc is mounted");
    }

    #[test]
    fn a_child_that_fails_without_a_message_is_named_with_its_exit_code() {
        let ChildResult::Exited { status, said, .. } = run("/bin/false").unwrap() else {
            panic!("it was stopped")
        };
        insta::assert_snapshot!(ChildResult::describe(status, &said), @"its process ended with exit status: 1 and without a message; check that there is enough memory and that /proc is mounted");
    }
}
