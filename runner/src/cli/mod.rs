//! The command line: parses the arguments, runs a command of its own file, and returns an exit
//! code.
//!
//! Data goes to standard output, everything else to standard error. Hooks are not handled here:
//! [`crate::role`] recognises them before any argument parser runs.

mod builders;
mod cache;
mod check;
mod ci;
mod compile;
mod demo;
mod differences;
mod doctor;
mod drain;
mod error;
mod follow;
mod help;
mod inspect;
mod log;
mod man;
mod new;
mod output;
mod pack;
mod queue;
mod sandbox;
mod shell;
mod since;
mod state_dir;
mod status;
mod stop;
mod sync;
mod test;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{FromArgMatches as _, Parser, Subcommand};

pub use error::CliError;

use crate::supervise::{self, tryout};
use crate::testing::Files;
use hookrun_config::{self as config, Config};
use hookrun_host::{compile as compiler, contain, examine};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::layout;
use hookrun_nix::terminal::stamp;

const EXAMPLES: &str = "\
Examples:
  hookrun demo                      show the main functions with real Nix, in a private store
  hookrun check                     validate the configuration and load every plugin
  hookrun test ./my-plugin.wasm     run a plugin on sample events
  hookrun status                    show running, waiting and failed tasks
  hookrun log --outcome dead        show the dead letters and their reasons
  hookrun queue retry --dead        retry the dead letters
  hookrun ci -- nix build           run a command, and wait for the uploads of its builds
  hookrun sync --since 3d           queue valid paths that no hook reported

In nix.conf (the name of the link selects the hook):
  post-build-hook = /usr/lib/hookrun/hookrun-post-build
  diff-hook       = /usr/lib/hookrun/hookrun-diff
  run-diff-hook   = true
  build-hook      = /usr/lib/hookrun/hookrun-build-hook

Exit code 0: success. 1: the tested or awaited operation failed. 2: usage. 3: configuration. 4:
environment. 70: internal error. `hookrun ci` returns the exit code of the command if the command
failed.";

/// One host for Nix's post-build-hook, diff-hook and build-hook, with sandboxed plugins.
#[derive(Debug, Parser)]
#[command(name = "hookrun", version, about, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// The configuration file [default: $HOOKRUN_CONFIG, or /etc/hookrun/hookrun.toml for root]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of queue and journal [default: $HOOKRUN_STATE_DIR, or /var/lib/hookrun for
    /// root]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main functions with real Nix in a private store: upload, substitution, mail,
    /// builder choice
    Demo(demo::Args),
    /// Run a plugin on sample events, with in-memory capabilities and the limits of real runs
    Test(test::Args),
    /// Validate the configuration, load every plugin, and check its secrets and services
    Check(check::Args),
    /// Check whether the installed Nix calls hookrun: versions, settings, users, permissions
    Doctor(doctor::Args),
    /// Compile the plugins ahead of time, because hooks do not compile
    Compile(compile::Args),
    /// Run all due tasks, then exit
    Drain(drain::DrainArgs),
    /// Run tasks until stopped, as a service
    Daemon(drain::DaemonArgs),
    /// End the running worker; its attempts run again later
    Stop(stop::Args),
    /// Show running, waiting and failed tasks
    Status(status::Args),
    /// Show attempts and their outcomes
    Log(log::Args),
    /// List, show, retry and drop tasks, or wait for them
    #[command(subcommand)]
    Queue(queue::Command),
    /// Inspect the machines that build for this one, and the policy that chooses between them
    #[command(subcommand)]
    Builders(builders::Command),
    /// Look after a binary cache: push, verify, repair, collect garbage, pin, sign, copy
    #[command(subcommand)]
    Cache(cache::Command),
    /// Run a command with hooks, and wait for the tasks of its builds
    Ci(ci::Args),
    /// Queue valid paths that no hook reported
    Sync(sync::Args),
    /// Show a plugin's identity, hooks, capabilities and limits
    Inspect(inspect::Args),
    /// Create the project of a plugin, with code, tests and a scenario that pass
    New(new::Args),
    /// Add the metadata of a plugin to a component, for languages other than Rust
    Pack(pack::Args),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Write the manual pages into a directory
    Man(shell::ManArgs),
    /// Run as a Nix hook
    Hook(HookArgs),
    /// The worker that a hook starts when none runs
    #[command(hide = true)]
    Worker(drain::WorkerArgs),
    /// The process that runs plugins for a worker or a build hook
    #[command(hide = true)]
    Runner,
    /// A hook that `hookrun ci` has set
    #[command(hide = true)]
    CiHook(ci::HookArgs),
    /// The process that tries services for `hookrun check`
    #[command(hide = true, name = tryout::COMMAND)]
    TryServices(check::TryArgs),
    /// The contained process that compiles a plugin
    #[command(hide = true, name = compiler::COMMAND)]
    CompileOne(compiler::CompileArgs),
    /// The contained process that examines a component
    #[command(hide = true, name = examine::COMMAND)]
    ExamineOne(contain::Bounds),
}

impl Command {
    /// Returns whether it is an error if the named configuration file does not exist. It is not an
    /// error for commands that get the configuration over a pipe, or that read none.
    fn needs_configuration(&self) -> bool {
        !matches!(
            self,
            Self::Runner
                | Self::CompileOne(_)
                | Self::CiHook(_)
                | Self::Completions(_)
                | Self::Man(_)
                | Self::Demo(_)
                | Self::Hook(_)
                | Self::New(_)
                | Self::Pack(_)
        )
    }

    /// Returns whether this command only reads the state directory, or communicates with its
    /// worker.
    fn reads_the_state_directory(&self) -> bool {
        matches!(
            self,
            Self::Status(_)
                | Self::Log(_)
                | Self::Queue(_)
                | Self::Builders(_)
                | Self::Doctor(_)
                | Self::Stop(_)
        )
    }

    /// Returns whether files of this command get the modes of [`layout`], whatever the umask is.
    fn fills_the_state_directory(&self) -> bool {
        matches!(
            self,
            Self::Check(_)
                | Self::Compile(_)
                | Self::Drain(_)
                | Self::Daemon(_)
                | Self::Worker(_)
                | Self::Sync(_)
        )
    }
}

/// Documented here for `--help`; [`crate::role`] acts on it before this parser runs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only Nix calls this: it sets the environment and the arguments. `man hookrun` describes what each
hook expects.")]
struct HookArgs {
    /// The hook
    #[arg(value_parser = ["post-build", "diff", "build-hook"])]
    hook: String,
    /// The arguments that Nix passes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The values that every command needs.
#[derive(Debug, Clone)]
struct Context {
    dirs: Dirs,
    /// Whether the user named the state directory, which must exist in that case.
    state_is_chosen: bool,
    /// Whether the user chose the configuration, by `--config` or `HOOKRUN_CONFIG`.
    config_is_chosen: bool,
}

impl Context {
    fn config(&self) -> Result<Config, CliError> {
        Ok(Config::in_force(&self.dirs)?)
    }

    /// Returns the files in which commands look for the configuration of a plugin.
    fn files(&self) -> Files<'_> {
        Files { config: &self.dirs.config, chosen: self.config_is_chosen, directory: Path::new("") }
    }
}

/// Parses `args` (without the program's name), runs the command, and returns its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args = std::iter::once(OsString::from("hookrun")).chain(args);
    let parsed = help::command()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to standard output and returns 0 for them.
            let failed = error.use_stderr();
            return if error.print().is_err() || failed { Exit::Usage } else { Exit::Done };
        }
    };
    let mut dirs = Dirs::from_env();
    let state_is_chosen = cli.state_dir.is_some()
        || std::env::var_os("HOOKRUN_STATE_DIR").is_some_and(|value| !value.is_empty());
    let config_is_chosen = cli.config.is_some()
        || std::env::var_os("HOOKRUN_CONFIG").is_some_and(|value| !value.is_empty());
    let there = match &cli.config {
        Some(config) => config::must_exist(config, "--config"),
        None => config::check_named_file(),
    };
    if let Some(config) = cli.config {
        dirs.config = config;
    }
    if let Some(state) = cli.state_dir {
        dirs.state = state;
    }
    let there = if cli.command.needs_configuration() { there } else { Ok(()) };
    let ended = there
        .map_err(CliError::from)
        .and_then(|()| run(cli.command, &Context { dirs, state_is_chosen, config_is_chosen }));
    match ended {
        Ok(exit) => exit,
        Err(error) if error.is_broken_pipe() || error.exit == Exit::Done => Exit::Done,
        Err(error) => {
            // Nothing can be reported if standard error is closed.
            let _ = writeln!(
                std::io::stderr(),
                "{}error: {}",
                stamp(),
                output::printable(&error.to_string())
            );
            error.exit
        }
    }
}

fn run(command: Command, context: &Context) -> Result<Exit, CliError> {
    if command.fills_the_state_directory() {
        layout::set_umask();
    }
    if command.reads_the_state_directory() {
        state_dir::answers(context)?;
    }
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(context, &args),
        Command::Check(args) => check::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Compile(args) => compile::run(context, &args),
        Command::Drain(args) => drain::drain(context, &args),
        Command::Daemon(args) => drain::daemon(context, &args),
        Command::Stop(args) => stop::run(context, &args),
        Command::Worker(args) => drain::worker(context, &args),
        Command::Runner => Ok(supervise::runner::main()),
        Command::CompileOne(order) => Ok(compiler::child(&order)),
        Command::TryServices(args) => Ok(tryout::child(&context.dirs, args.live)),
        Command::ExamineOne(bounds) => Ok(examine::child(&bounds)),
        Command::Status(args) => status::run(context, &args),
        Command::Log(args) => log::run(context, &args),
        Command::Queue(command) => queue::run(context, &command),
        Command::Builders(command) => builders::run(context, &command),
        Command::Cache(command) => cache::run(context, &command),
        Command::Ci(args) => ci::run(context, &args),
        Command::Sync(args) => sync::run(context, &args),
        Command::CiHook(args) => Ok(ci::hook(&context.dirs, &args)),
        Command::Inspect(args) => inspect::run(context, &args),
        Command::New(args) => new::run(context, &args),
        Command::Pack(args) => pack::run(context, &args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::manual(&args),
        Command::Hook(args) => Err(CliError::usage(format!(
            "`hookrun hook {}` is for Nix to call; set it in nix.conf (see `hookrun --help`), or try `hookrun demo`",
            args.hook
        ))),
    }
}

/// Returns the runtime of commands that run plugins. Hooks do not use it.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::environment)
}

#[cfg(test)]
mod tests;
