//! The command line: arguments -> a plan -> the library -> an exit code. One file a command.
//!
//! Data goes to standard output, everything else to standard error. Hooks do not come through here:
//! [`crate::role`] knows them before an argument parser is touched.

mod builders;
mod check;
mod ci;
mod compile;
mod demo;
mod doctor;
mod drain;
mod error;
mod follow;
mod inspect;
mod log;
mod output;
mod queue;
mod sandbox;
mod shell;
mod since;
mod status;
mod sync;
mod test;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use error::CliError;

use crate::config::Config;
use crate::dirs::Dirs;
use crate::exit_code::Exit;
use crate::plugin::compile as compiler;
use crate::supervise;

const EXAMPLES: &str = "\
Examples:
  hookrun demo                      watch the main job on real Nix, in a private store
  hookrun check                     is the configuration valid, and will every plugin load?
  hookrun test ./my-plugin.wasm     run a plugin on sample events
  hookrun status                    what runs, what waits, what failed
  hookrun log --outcome dead        what was given up, and why
  hookrun queue retry --dead        another chance for it
  hookrun ci -- nix build           report this command's builds, wait for their uploads
  hookrun sync --since 3d           hand over what no hook reported

In nix.conf (links to this binary say which hook it is):
  post-build-hook = /usr/lib/hookrun/hookrun-post-build
  diff-hook       = /usr/lib/hookrun/hookrun-diff
  run-diff-hook   = true
  build-hook      = /usr/lib/hookrun/hookrun-build-hook

Exit codes: 0 done; 1 the thing tested or awaited failed; 2 usage; 3 configuration; 4 environment; 70 internal. `ci`: the command's own if it failed.";

/// One host for Nix's post-build-hook, diff-hook and build-hook, with sandboxed plugins.
#[derive(Debug, Parser)]
#[command(name = "hookrun", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// The configuration [default: $HOOKRUN_CONFIG, or /etc/hookrun/hookrun.toml for root]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where queue and journal are [default: $HOOKRUN_STATE_DIR, or /var/lib/hookrun for root]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main job on real Nix in a private store: upload, substitution, mail, builder choice
    Demo(demo::Args),
    /// Run a plugin on sample events, with in-memory capabilities and the limits of the real thing
    Test(test::Args),
    /// Is the configuration valid, does every plugin load, is every secret readable?
    Check(check::Args),
    /// Will this Nix really call us? Versions, settings, users, permissions
    Doctor(doctor::Args),
    /// Compile the plugins ahead of time, as hooks never do
    Compile(compile::Args),
    /// Work until nothing can be done now
    Drain(drain::DrainArgs),
    /// Work until told to stop (for a service)
    Daemon(drain::DaemonArgs),
    /// What runs, what waits, what failed
    Status(status::Args),
    /// What happened: attempts and their outcomes
    Log(log::Args),
    /// Tasks one by one: list, show, retry, drop, wait for them
    #[command(subcommand)]
    Queue(queue::Command),
    /// The machines that build for this one, and the policy that chooses
    #[command(subcommand)]
    Builders(builders::Command),
    /// Hooks for one command: report its builds, wait for what plugins make of them
    Ci(ci::Args),
    /// Hand over valid paths that no hook reported
    Sync(sync::Args),
    /// A plugin's identity, hooks, wanted and granted capabilities, and limits
    Inspect(inspect::Args),
    /// Completions for a shell, on standard output
    Completions(shell::CompletionsArgs),
    /// The manual pages, into a directory
    Man(shell::ManArgs),
    /// Be one of Nix's hooks outright
    Hook(HookArgs),
    /// The worker that a hook starts when none runs
    #[command(hide = true)]
    Worker(drain::WorkerArgs),
    /// The process that runs plugins for a worker or a build hook
    #[command(hide = true)]
    Runner,
    /// A hook that `hookrun ci` set
    #[command(hide = true)]
    CiHook(ci::HookArgs),
    /// The contained compiler
    #[command(hide = true, name = compiler::COMMAND)]
    CompileOne(compiler::Order),
}

/// Documented here for `--help`; [`crate::role`] acts on it before this parser runs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nix sets the environment and the arguments; see `man hookrun` for what each hook expects."
)]
struct HookArgs {
    /// Which hook
    #[arg(value_parser = ["post-build", "diff", "build-hook"])]
    hook: String,
    /// What Nix passes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// What every command needs to know.
#[derive(Debug, Clone)]
struct Context {
    dirs: Dirs,
}

impl Context {
    fn config(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.dirs.config)?)
    }
}

/// Parses `args` (without the program's name), runs the command and says how it ended.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args = std::iter::once(OsString::from("hookrun")).chain(args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to standard output and returns 0 for them.
            let failed = error.use_stderr();
            return if error.print().is_err() || failed { Exit::Usage } else { Exit::Done };
        }
    };
    let mut dirs = Dirs::from_env();
    if let Some(config) = cli.config {
        dirs.config = config;
    }
    if let Some(state) = cli.state_dir {
        dirs.state = state;
    }
    match run(cli.command, &Context { dirs }) {
        Ok(exit) => exit,
        Err(error) if error.is_broken_pipe() || error.exit == Exit::Done => Exit::Done,
        Err(error) => {
            // Nothing is left to do when standard error is gone too.
            let _ = writeln!(std::io::stderr(), "error: {}", output::printable(&error.to_string()));
            error.exit
        }
    }
}

fn run(command: Command, context: &Context) -> Result<Exit, CliError> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(context, &args),
        Command::Check(args) => check::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Compile(args) => compile::run(context, &args),
        Command::Drain(args) => drain::drain(context, &args),
        Command::Daemon(args) => drain::daemon(context, &args),
        Command::Worker(args) => drain::worker(context, &args),
        Command::Runner => Ok(supervise::runner::main()),
        Command::CompileOne(order) => Ok(compiler::child(&order)),
        Command::Status(args) => status::run(context, &args),
        Command::Log(args) => log::run(context, &args),
        Command::Queue(command) => queue::run(context, &command),
        Command::Builders(command) => builders::run(context, &command),
        Command::Ci(args) => ci::run(context, &args),
        Command::Sync(args) => sync::run(context, &args),
        Command::CiHook(args) => Ok(ci::hook(&context.dirs, &args)),
        Command::Inspect(args) => inspect::run(context, &args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Hook(args) => Err(CliError::usage(format!(
            "`hookrun hook {}` is for Nix to call; set it in nix.conf (see `hookrun --help`), or try `hookrun demo`",
            args.hook
        ))),
    }
}

/// The runtime of commands that run plugins. Hooks never come here.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::environment)
}

#[cfg(test)]
mod tests;
