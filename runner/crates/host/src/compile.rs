//! Compiles components in a contained process. Untrusted bytes can make a compiler take unlimited
//! time and memory, and wasmtime does not protect against that. The compiler therefore runs in a
//! child process ([`super::contain`]) with limits on both (`compile-time`, `compile-memory`). This
//! process never compiles, except with [`Compiler::InProcess`].
//!
//! [`super::host`] calls this module when it prepares a plugin.

use std::io::{Read as _, Write as _};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use wasmtime::Engine;

use super::contain::{self, Bounds, ChildResult};
use super::engine;
use hookrun_config::{Limit, Plugin};
use hookrun_nix::exit_code::Exit;

/// The hidden command of the child process.
pub const COMMAND: &str = "compile-one";

/// Number of compiler threads. It is low because the compiler runs beside builds.
const THREADS: &str = "2";
/// Maximum size of the native code of one component. The largest known one (an interpreter of
/// Python) has 35 MiB.
const MAX_CODE: u64 = 1 << 30;
/// Messages of the compiler when memory for its threads (rayon-core 1.13) or for anything else
/// (wasmtime 48) is exhausted.
const NO_MEMORY: [&str; 2] = ["ThreadPoolBuildError", "out of memory"];
/// Ratio of the processor time limit to the wall time limit. Processor time is the sum over all
/// threads; this limit stops a child whose parent did not.
const PROCESSOR_FACTOR: u64 = 4;

/// Where plugins are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// In a child process, which must be hookrun. If this process is root, the child changes to
    /// this user.
    Contained(Option<String>),
    /// In a child process, while Nix waits. Compilation that is not finished at this time is left
    /// to a later process.
    Within(Option<String>, Instant),
    /// In this process, for programs that are not hookrun, such as tests.
    InProcess,
    /// Nowhere: a hook uses a plugin only if it is already compiled.
    Disabled,
}

/// Why there is no native code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A fragment about the component, such as `does not compile (...)`.
    #[error("{0}")]
    Component(String),
    /// A complete message about a limit, which names its key.
    #[error("{0}")]
    Limit(String),
    /// This process does not compile.
    #[error(
        "is not compiled yet, and a hook does not wait for a compiler; it is being compiled now, or run `hookrun compile`"
    )]
    NotCompiled,
    /// The child process could not be started or did not finish, which is not a fault of the
    /// component.
    #[error("cannot be compiled: {0}")]
    System(String),
}

impl From<std::io::Error> for CompileError {
    fn from(error: std::io::Error) -> Self {
        Self::System(error.to_string())
    }
}

impl Compiler {
    /// Compiles `wasm` for an engine with the settings of `plugin`.
    pub(super) fn compile(
        &self,
        engine: &Engine,
        plugin: &Plugin,
        wasm: &[u8],
    ) -> Result<Vec<u8>, CompileError> {
        match self {
            Self::Disabled => Err(CompileError::NotCompiled),
            Self::InProcess => {
                engine.precompile_component(wasm).map_err(|error| refused(&format!("{error:#}")))
            }
            Self::Contained(user) => contained(user.as_deref(), plugin, wasm, None),
            Self::Within(user, until) => contained(user.as_deref(), plugin, wasm, Some(*until)),
        }
    }

    /// Returns how long to wait for another process that compiles the same component.
    pub(super) fn patience(&self, plugin: &Plugin) -> Duration {
        match self {
            Self::Disabled => Duration::ZERO,
            Self::Within(_, until) => until.saturating_duration_since(Instant::now()),
            Self::InProcess | Self::Contained(_) => plugin.limits.time(Limit::CompileTime),
        }
    }
}

/// What the validator says of a component that uses what WASI 0.3 is made of.
const ASYNC: &str = "component model async";

fn refused(said: &str) -> CompileError {
    let said = said.trim().replace('\n', " ");
    let fix = if said.contains(ASYNC) {
        "hookrun offers WASI 0.2 without async: build it without async functions (with jco: \
         --backend-qjs-disable-async)"
    } else {
        "build it with the SDK of this release"
    };
    CompileError::Component(format!("does not compile ({said}); {fix}"))
}

fn contained(
    user: Option<&str>,
    plugin: &Plugin,
    wasm: &[u8],
    until: Option<Instant>,
) -> Result<Vec<u8>, CompileError> {
    let limits = &plugin.limits;
    let allowed = limits.time(Limit::CompileTime);
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let time = left.map_or(allowed, |left| left.min(allowed));
    let bounds = Bounds {
        memory: limits.get(Limit::CompileMemory),
        processor: allowed.as_secs().saturating_add(1).saturating_mul(PROCESSOR_FACTOR),
        output: MAX_CODE,
        user: user.map(ToOwned::to_owned),
    };
    let stack = limits.get(Limit::Stack).to_string();
    let command = [COMMAND, "--stack", &stack];
    match contain::run(&command, &bounds, &[("RAYON_NUM_THREADS", THREADS)], &[wasm], time)? {
        ChildResult::TimeUp if time < allowed => Err(CompileError::NotCompiled),
        ChildResult::TimeUp => Err(CompileError::Limit(Limit::CompileTime.reached(
            &plugin.name,
            limits.get(Limit::CompileTime),
            None,
        ))),
        ChildResult::Exited { status, output, .. } if status.success() => Ok(output),
        ChildResult::Exited { status, said, .. } => Err(failure(plugin, status, &said)),
    }
}

fn failure(plugin: &Plugin, ended: ExitStatus, said: &str) -> CompileError {
    use std::os::unix::process::ExitStatusExt as _;
    let too_much_memory = || {
        let allowed = plugin.limits.get(Limit::CompileMemory);
        CompileError::Limit(Limit::CompileMemory.reached(&plugin.name, allowed, None))
    };
    match ended.signal() {
        // Rust's allocator aborts the process when memory is exhausted.
        Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS) => too_much_memory(),
        None if NO_MEMORY.iter().any(|words| said.contains(words)) => too_much_memory(),
        Some(libc::SIGXCPU) => {
            let allowed = plugin.limits.get(Limit::CompileTime);
            CompileError::Limit(Limit::CompileTime.reached(&plugin.name, allowed, None))
        }
        // Only this exit code stands for a faulty component; the child has printed the reason.
        None if ended.code() == Some(Exit::Failed.code().into()) && !said.trim().is_empty() => {
            refused(said)
        }
        _ => CompileError::System(ChildResult::describe(ended, said)),
    }
}

/// The arguments of the child process.
#[derive(Debug, clap::Args)]
pub struct CompileArgs {
    /// Bytes of stack for the guest: a setting of the engine
    #[arg(long, value_name = "N")]
    stack: u64,
    #[command(flatten)]
    bounds: Bounds,
}

/// The main function of the child process. It reads a component from standard input and writes
/// native code to standard output and errors to standard error.
pub fn child(order: &CompileArgs) -> Exit {
    hookrun_system::signals::unblock();
    let (exit, error) = match child_work(order) {
        Ok(Ok(())) => return Exit::Done,
        Ok(Err(refused)) => (Exit::Failed, refused),
        Err(error) => (Exit::Environment, error),
    };
    // The parent process reads this.
    let _said = writeln!(std::io::stderr(), "{error}");
    exit
}

/// Compiles the component. The inner error is about the component, the outer one about this
/// process.
fn child_work(order: &CompileArgs) -> Result<Result<(), String>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // The compiler starts threads. If that fails later although it succeeds now, the memory for
    // their stacks is exhausted.
    let one = std::thread::Builder::new().spawn(|| ());
    let _ended = one
        .map_err(|error| {
            format!(
                "the compiler cannot start a thread ({error}); allow more processes (`ulimit -u`)"
            )
        })?
        .join();
    contain::confine(&order.bounds)?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().read_to_end(&mut wasm).map_err(|error| text(&error))?;
    let engine =
        Engine::new(&engine::settings(order.stack)).map_err(|error| format!("{error:#}"))?;
    let code = match engine.precompile_component(&wasm) {
        Ok(code) => code,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    std::io::stdout().lock().write_all(&code).map_err(|error| text(&error)).map(Ok)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_limit_that_ended_the_compiler_is_named() {
        let text = "[plugins.x]\nsource = \"x.wasm\"\n";
        let config =
            hookrun_config::Config::parse(std::path::Path::new("/etc/hookrun.toml"), text).unwrap();
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
        assert_eq!(limit(libc::SIGKILL, ""), None, "no limit of the child sends it");
        let text = |status: i32, said: &str| {
            failure(plugin, ExitStatus::from_raw(status), said).to_string()
        };
        insta::assert_snapshot!(text(1 << 8, "unknown section\n"), @"does not compile (unknown section); build it with the SDK of this release");
        insta::assert_snapshot!(text(1 << 8, ""), @"cannot be compiled: its process ended with exit status: 1 and without a message; check that there is enough memory and that /proc is mounted");
        insta::assert_snapshot!(text(4 << 8, "no such user"), @"cannot be compiled: its process ended with exit status: 4: no such user");
        insta::assert_snapshot!(text(libc::SIGILL, ""), @"cannot be compiled: its process ended with signal: 4 (SIGILL) and without a message; check that there is enough memory and that /proc is mounted");
    }

    #[test]
    fn an_error_of_a_compiler_process_that_is_not_hookrun_does_not_blame_the_component() {
        let text = "[plugins.x]\nsource = \"x.wasm\"\n";
        let config =
            hookrun_config::Config::parse(std::path::Path::new("/etc/hookrun.toml"), text).unwrap();
        let plugin = &config.plugins["x"];
        let engine = Engine::new(&engine::settings(plugin.limits.get(Limit::Stack))).unwrap();
        // This test's program is the test runner, which does not have the hidden command.
        let error = Compiler::Contained(None).compile(&engine, plugin, b"").unwrap_err();
        let error = error.to_string();
        let end = "cannot be compiled: its process ended with exit status: 101: ";
        assert!(error.starts_with(end), "{error}");
    }
}
