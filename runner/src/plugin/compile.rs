//! Compilation, contained. A compiler that works on strangers' bytes can be made to take all time
//! and memory, which wasmtime declares not its concern; so it runs in a child process with limits
//! on both (`compile-time`, `compile-memory`), behind a wall with no file and no network, and hands
//! its result over in memory. This process never compiles, except where [`Compiler::InProcess`]
//! says so.
//!
//! Called by [`super::load`] while a plugin is made ready, before this process has its own wall: a
//! walled process starts no other.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, Resource, Rlimit, setrlimit};
use wasmtime::Engine;

use super::engine;
use crate::config::{Limit, Plugin};
use crate::exit_code::Exit;
use crate::wall::{Identity, User, Wall};

/// The hidden command of the child.
pub const COMMAND: &str = "compile-one";

/// Threads of the compiler: it runs beside builds.
const THREADS: &str = "2";
/// The most native code that one component may become; the largest known (an interpreter of Python)
/// becomes 35 MiB.
const MAX_CODE: u64 = 1 << 30;
/// How much of what the child says is read.
const MAX_SAID: u64 = 4 << 10;
/// What the compiler says when there is no memory for its threads (rayon-core 1.13) or for
/// something else (wasmtime 48).
const NO_MEMORY: [&str; 2] = ["ThreadPoolBuildError", "out of memory"];
/// Processor time is counted over all threads: this much more than wall time is a child that nobody
/// stopped.
const PROCESSOR_FACTOR: u64 = 4;

/// Who compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// A child of this process, which must be hookrun. Where this process is root it becomes this
    /// user.
    Contained(Option<String>),
    /// The same in a process that Nix waits for: what is not done by then is left for the next.
    Within(Option<String>, Instant),
    /// This process: for programs that are not hookrun, such as tests.
    InProcess,
    /// Nobody: on the hook path a plugin is there or it is not.
    Nobody,
}

/// Why there is no native code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A fragment about the component, such as `does not compile (...)`.
    #[error("{0}")]
    Component(String),
    /// A whole message: a limit, with its key.
    #[error("{0}")]
    Limit(String),
    /// Nobody compiles here.
    #[error(
        "is not compiled yet, and a hook does not wait for a compiler; it is being compiled now, or run `hookrun compile`"
    )]
    NotAhead,
    /// The child could not be had.
    #[error("cannot be compiled ({0}); see that there is memory, and that /proc is mounted")]
    System(#[from] std::io::Error),
}

impl Compiler {
    /// Compiles `wasm` for an engine with `plugin`'s settings.
    pub(super) fn compile(
        &self,
        engine: &Engine,
        plugin: &Plugin,
        wasm: &[u8],
    ) -> Result<Vec<u8>, CompileError> {
        match self {
            Self::Nobody => Err(CompileError::NotAhead),
            Self::InProcess => {
                engine.precompile_component(wasm).map_err(|error| refused(&format!("{error:#}")))
            }
            Self::Contained(user) => contained(user.as_deref(), plugin, wasm, None),
            Self::Within(user, until) => contained(user.as_deref(), plugin, wasm, Some(*until)),
        }
    }

    /// How long to wait for another process that compiles the same.
    pub(super) fn patience(&self, plugin: &Plugin) -> Duration {
        match self {
            Self::Nobody => Duration::ZERO,
            Self::Within(_, until) => until.saturating_duration_since(Instant::now()),
            Self::InProcess | Self::Contained(_) => plugin.limits.time(Limit::CompileTime),
        }
    }
}

fn refused(said: &str) -> CompileError {
    CompileError::Component(format!("does not compile ({})", said.trim().replace('\n', " ")))
}

fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn contained(
    user: Option<&str>,
    plugin: &Plugin,
    wasm: &[u8],
    until: Option<Instant>,
) -> Result<Vec<u8>, CompileError> {
    // Files in memory and no pipes: nobody has to be read from and written to at once, so one
    // thread is enough.
    let (mut input, mut output, mut said) =
        (memory_file("wasm")?, memory_file("code")?, memory_file("said")?);
    input.write_all(wasm)?;
    input.rewind()?;
    let limits = &plugin.limits;
    let (allowed, memory) = (limits.time(Limit::CompileTime), limits.get(Limit::CompileMemory));
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let time = left.map_or(allowed, |left| left.min(allowed));
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("hookrun")
        .arg(COMMAND)
        .args(["--stack", &limits.get(Limit::Stack).to_string()])
        .args(["--memory", &memory.to_string()])
        .args(["--seconds", &time.as_secs().saturating_add(1).to_string()])
        .env_clear()
        .env("RAYON_NUM_THREADS", THREADS)
        .current_dir("/")
        .stdin(input)
        .stdout(output.try_clone()?)
        .stderr(said.try_clone()?);
    if let Some(user) = user.filter(|_| rustix::process::geteuid().is_root()) {
        command.args(["--user", user]);
    }
    let mut child = command.spawn()?;
    let ended = match wait(&child, time) {
        Ok(true) => child.wait()?,
        Ok(false) => {
            child.kill()?;
            child.wait()?;
            if time < allowed {
                return Err(CompileError::NotAhead);
            }
            let allowed = limits.get(Limit::CompileTime);
            return Err(CompileError::Limit(Limit::CompileTime.reached(
                &plugin.name,
                allowed,
                None,
            )));
        }
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error.into());
        }
    };
    said.rewind()?;
    let mut text = String::new();
    let _partly = said.take(MAX_SAID).read_to_string(&mut text);
    if !ended.success() {
        return Err(failure(plugin, ended, &text));
    }
    output.rewind()?;
    let mut code = Vec::new();
    output.read_to_end(&mut code)?;
    Ok(code)
}

/// Has the child ended in this time?
fn wait(child: &std::process::Child, time: Duration) -> std::io::Result<bool> {
    let process = rustix::process::Pid::from_child(child);
    let ended: OwnedFd = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
    let mut events = [PollFd::new(&ended, PollFlags::IN)];
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let begun = std::time::Instant::now();
    loop {
        match poll(&mut events, Some(&time)) {
            Ok(count) => return Ok(count > 0),
            // Begun anew: a signal lengthens the limit by at most as much again, and processor time
            // is bounded too.
            Err(rustix::io::Errno::INTR)
                if begun.elapsed().as_secs() <= time.tv_sec.unsigned_abs() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn failure(plugin: &Plugin, ended: ExitStatus, said: &str) -> CompileError {
    use std::os::unix::process::ExitStatusExt as _;
    let too_much_memory = || {
        let allowed = plugin.limits.get(Limit::CompileMemory);
        CompileError::Limit(Limit::CompileMemory.reached(&plugin.name, allowed, None))
    };
    match ended.signal() {
        // Rust's allocator aborts when there is no more memory.
        Some(libc::SIGABRT | libc::SIGKILL | libc::SIGSEGV | libc::SIGBUS) => too_much_memory(),
        None if NO_MEMORY.iter().any(|words| said.contains(words)) => too_much_memory(),
        Some(libc::SIGXCPU) => {
            let allowed = plugin.limits.get(Limit::CompileTime);
            CompileError::Limit(Limit::CompileTime.reached(&plugin.name, allowed, None))
        }
        Some(signal) => refused(&format!("the compiler died of signal {signal}")),
        None => refused(said),
    }
}

/// What the child is told.
#[derive(Debug, clap::Args)]
pub struct Order {
    /// Bytes of stack for the guest: a setting of the engine
    #[arg(long)]
    stack: u64,
    /// Bytes of memory
    #[arg(long)]
    memory: u64,
    /// Seconds of wall time
    #[arg(long)]
    seconds: u64,
    /// Who to become
    #[arg(long)]
    user: Option<String>,
}

/// The child: a component on standard input, native code on standard output, what is wrong on
/// standard error.
pub fn child(order: &Order) -> Exit {
    crate::builders::fds::unblock_signals();
    match child_work(order) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // Read by the parent.
            let _said = writeln!(std::io::stderr(), "{error}");
            Exit::Failed
        }
    }
}

fn child_work(order: &Order) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // Its parent bounds its time. The parent waits on the thread that started this process.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| text(&error))?;
    let identity = match &order.user {
        Some(name) => Identity::User(
            User::find(name).map_err(|error| format!("`user` under [worker]: {error}"))?,
        ),
        None => Identity::Powerless,
    };
    // The compiler will start some. If that fails although it works now, there is no memory left
    // for their stacks.
    let one = std::thread::Builder::new().spawn(|| ());
    let _ended = one
        .map_err(|error| {
            format!(
                "the compiler cannot start a thread ({error}); allow more processes (`ulimit -u`)"
            )
        })?
        .join();
    let bound = |resource, value| {
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    // Memory that is written to; address space alone is free, and thread-local heaps reserve much
    // of it.
    bound(Resource::Data, order.memory).map_err(|error| text(&error))?;
    bound(Resource::Cpu, order.seconds.saturating_mul(PROCESSOR_FACTOR))
        .map_err(|error| text(&error))?;
    bound(Resource::Fsize, MAX_CODE).map_err(|error| text(&error))?;
    Wall::closed(identity).raise().map_err(|error| text(&error))?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().read_to_end(&mut wasm).map_err(|error| text(&error))?;
    let engine =
        Engine::new(&engine::settings(order.stack)).map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(&wasm).map_err(|error| format!("{error:#}"))?;
    std::io::stdout().lock().write_all(&code).map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn which_limit_ended_the_compiler() {
        let text = "[plugins.x]\nsource = \"x.wasm\"\n";
        let config =
            crate::config::Config::parse(std::path::Path::new("/etc/hookrun.toml"), text).unwrap();
        let plugin = &config.plugins["x"];
        let limit =
            |status: i32, said: &str| match failure(plugin, ExitStatus::from_raw(status), said) {
                CompileError::Limit(reached) => reached.split('`').nth(3).map(ToOwned::to_owned),
                _ => None,
            };
        assert_eq!(
            limit(libc::SIGABRT, "memory allocation failed").as_deref(),
            Some("compile-memory")
        );
        assert_eq!(limit(libc::SIGXCPU, "").as_deref(), Some("compile-time"));
        let panic = "not initialized.: ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: WouldBlock";
        assert_eq!(limit(101 << 8, panic).as_deref(), Some("compile-memory"));
        assert_eq!(limit(1 << 8, "out of memory\n").as_deref(), Some("compile-memory"));
        assert_eq!(limit(1 << 8, "unknown section"), None);
        assert_eq!(limit(libc::SIGILL, ""), None);
    }
}
