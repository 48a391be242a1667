//! `hookrun ci -- CMD`: sets hooks for this command only, waits for its uploads, and reports
//! unfinished work in the exit code.
//!
//! The hooks are set through `NIX_CONFIG` of the command ([`hooks`]), which Nix sends on to a
//! daemon that trusts the user. A daemon that does not trust the user ignores them silently.
//! [`daemon_access`] detects this beforehand, and built paths are then read from Nix's database.
//! The workers are the same as those that hooks start, so they exit by themselves when this process
//! is killed. The command keeps its own standard streams: all messages go to standard error.

mod daemon_access;
mod hooks;
mod idle_timeout;
mod own_hooks;
mod summary;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

pub(super) use hooks::{HookArgs, hook};

use self::daemon_access::DaemonAccess;
use self::hooks::Installed;
use self::idle_timeout::{IdleTimeout, QueueState, WaitDecision};
use self::own_hooks::OwnHooks;
use self::summary::Summary;
use super::output::printable;
use super::{CliError, Context, sync};
use crate::supervise::supervisor::Supervisor;
use hookrun_config::{Config, is_missing};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{NixDirs, now_ms};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::Journal;
use hookrun_queue::worker::Executor as _;
use hookrun_queue::{health, lock, spawn, spool};

/// The interval at which progress is checked.
const LOOK: Duration = Duration::from_millis(200);
/// The time for a started worker to take its lock, before another one is started.
const WORKER_START: Duration = Duration::from_secs(5);
/// The time for a worker to release a private state directory: the time that its runs have after a
/// request to stop, plus some.
const WORKER_STOP: Duration = Duration::from_secs(15);
/// The exit codes of shells for a command that does not exist, and for one that was ended by a
/// signal (POSIX.1-2024, XCU 2.8.2).
const NOT_FOUND: u8 = 127;
const SIGNALLED: i32 = 128;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every build of CMD becomes an event, and workers run while CMD runs. After CMD has ended, hookrun
waits for the remaining tasks while there is progress: an event is taken, or a task ends or runs.
Unfinished tasks stay in the queue for the next worker. A post-build-hook or diff-hook of your own
configuration is also called.

A Nix daemon accepts hooks only from users in `trusted-users`. For other users, and if no hook was
called, hookrun queues the paths that were built meanwhile according to Nix's database.

Exit code: that of CMD if it failed (128 plus the number of the signal that ended it, 127 if it does
not exist). 1: a task is unfinished, dead or refused, or an event was rejected. 0: everything is
done. 3: the configuration is not valid, and CMD was not run.

Examples:
  hookrun ci -- nix-build -A everything
  hookrun ci --wait-idle 20m --report summary.json -- nix build .#checks
  hookrun ci --private --diff-hook -- nix-build --check -A hello")]
pub(super) struct Args {
    /// Also report builds with different results (`nix-build --check`): set run-diff-hook and
    /// diff-hook
    #[arg(long)]
    diff_hook: bool,
    /// Also choose builders: set build-hook
    #[arg(long)]
    build_hook: bool,
    /// Use a queue for this command only, in a directory that is removed when everything is done
    #[arg(long)]
    private: bool,
    /// Stop waiting after this time without progress; with 0s, do not wait
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "5m")]
    wait_idle: Duration,
    /// Also write the summary as JSON to FILE
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    // Report an invalid configuration now, not after an hour of building.
    let config = context.config()?;
    let work = hooks::WorkDirectory::create().map_err(CliError::environment)?;
    let mut dirs = context.dirs.clone();
    if args.private {
        dirs.state = work.private_state().map_err(CliError::environment)?;
    }
    // Hooks run in another working directory.
    for path in [&mut dirs.config, &mut dirs.state] {
        *path = std::path::absolute(&*path)?;
    }
    let reach = daemon_access::find(&NixDirs::from_env());
    // A daemon that does not trust this user still calls the hooks of its own configuration.
    let own = if reach == (DaemonAccess::Daemon { trusted: false }) {
        OwnHooks::default()
    } else {
        OwnHooks::find(&dirs, args.diff_hook, args.build_hook)
    };
    own.notes.iter().for_each(|note| say(note));
    let installed =
        work.install(&dirs, reach, args.diff_hook, args.build_hook, args.private, &own)?;
    let rejected_before = spool::count_rejected(&dirs.rejected());
    let session = Session { dirs, begun_ms: now_ms() };
    let mut summary = super::runtime()?.block_on(session.play(args, &installed, reach))?;
    summary.output_bytes = session.output_bytes();
    summary.set_aside =
        spool::count_rejected(&session.dirs.rejected()).saturating_sub(rejected_before);
    summary.forgotten = session.forgotten(&config)?;
    say(&summary.to_string());
    if let Some(path) = &args.report {
        std::fs::write(path, super::output::json_text(&summary)?)
            .with_context(|| {
                format!(
                    "cannot write the summary to {}; name a file that you may write to",
                    path.display()
                )
            })
            .map_err(CliError::environment)?;
    }
    if args.private && session.stop_worker() {
        if summary.all_done() {
            work.remove();
        } else {
            say(&format!(
                "the queue is kept; to continue with it, run `hookrun --state-dir {} drain`",
                session.dirs.state.display()
            ));
        }
    } else if !args.private {
        work.remove();
    }
    Ok(summary.exit())
}

/// Prints one line to standard error, which the command also uses.
fn say(message: &str) {
    hookrun_nix::terminal::say(&printable(message));
}

/// The queue for the events of this command.
struct Session {
    dirs: Dirs,
    begun_ms: u64,
}

impl Session {
    async fn play(
        &self,
        args: &Args,
        installed: &Installed,
        reach: DaemonAccess,
    ) -> Result<Summary, CliError> {
        let mut signals = Signals::new()?;
        let mut workers = Workers { session: self, started: None };
        let Some((program, arguments)) = args.command.split_first() else {
            return Err(CliError::usage("no command; write it after `--`"));
        };
        if reach == (DaemonAccess::Daemon { trusted: false }) {
            say(
                "the Nix daemon ignores the hooks of this user, who is not in `trusted-users`; built paths are read from Nix's database afterwards. To use hooks, add the user to `trusted-users` in /etc/nix/nix.conf and restart nix-daemon, or set post-build-hook there",
            );
        }
        let mut summary = Summary { state: self.dirs.state.clone(), ..Summary::default() };
        summary.command_exit = match Command::new(program)
            .args(arguments)
            .env("NIX_CONFIG", &installed.nix_config)
            .spawn()
        {
            Ok(child) => exit_code(wait_for(child, &mut signals, &mut workers).await?),
            Err(error) => {
                say(&format!("`{}` cannot be started ({error})", program.to_string_lossy()));
                i32::from(NOT_FOUND)
            }
        };
        let without_hooks = reach == (DaemonAccess::Daemon { trusted: false });
        self.look(&mut summary)?;
        if without_hooks || (summary.events == 0 && summary.spooled == 0) {
            match self.look_up() {
                Ok(found) => summary.found_afterwards = found,
                // Without hooks, the database is the only source. Otherwise the command may not
                // have used Nix.
                Err(error) if without_hooks => {
                    say(&format!("the built paths cannot be read from Nix's database: {error}"));
                }
                Err(_) => {}
            }
            if summary.found_afterwards > 0 && !without_hooks {
                say(
                    "no hook was called for the built paths, so they are taken from Nix's database; check whether the command sets its own hooks, or runs Nix in another environment, as sudo does",
                );
            }
        }
        self.wait(args, &mut signals, &mut workers, &mut summary).await?;
        Ok(summary)
    }

    /// Waits while there is progress, or until a signal interrupts it.
    async fn wait(
        &self,
        args: &Args,
        signals: &mut Signals,
        workers: &mut Workers<'_>,
        summary: &mut Summary,
    ) -> Result<(), CliError> {
        let begun = Instant::now();
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        let mut patience = IdleTimeout::new(args.wait_idle);
        let mut look = Instant::now();
        loop {
            let seen = self.look(summary)?;
            let verdict = patience.step(seen, look.elapsed());
            look = Instant::now();
            summary.finished = verdict == WaitDecision::Finished;
            if verdict != WaitDecision::Wait {
                break;
            }
            if let Some(bar) = &bar {
                bar.set_message(format!(
                    "{} left, {} running",
                    seen.open + seen.spooled,
                    seen.running
                ));
                bar.tick();
            }
            workers.ensure(&seen);
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = signals.next() => {
                    say("interrupted; unfinished tasks stay in the queue");
                    break;
                }
            }
        }
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        summary.waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Hands over the paths that were built since the command began, according to Nix's database.
    /// Returns the number of events.
    fn look_up(&self) -> Result<usize, CliError> {
        // Nix stores times in whole seconds.
        let wanted = sync::PathSelection {
            since_ms: Some(self.begun_ms / 1000 * 1000),
            built: true,
            ..sync::PathSelection::default()
        };
        let report = sync::enqueue(&self.dirs, &wanted, sync::Options::default(), &mut |_| {})?;
        Ok(report.enqueued)
    }

    /// Returns the number of events of this command that a plugin of `config` wants and that became
    /// no task, because the worker that took them had another configuration.
    fn forgotten(&self, config: &Config) -> Result<usize, CliError> {
        let Some(journal) = Journal::open_read_only(&self.dirs).map_err(CliError::environment)?
        else {
            return Ok(0);
        };
        let events = journal.events_without_tasks(self.begun_ms).map_err(CliError::environment)?;
        if events.is_empty() {
            return Ok(0);
        }
        let plugins = Supervisor::new(config.clone(), &self.dirs);
        Ok(events.iter().filter(|event| !plugins.wanted(event).is_empty()).count())
    }

    /// Reads the state of this command's events.
    fn look(&self, summary: &mut Summary) -> Result<QueueState, CliError> {
        // The spool is read first, because an event that leaves it is already in the journal.
        summary.spooled = self.spooled();
        if let Some(journal) = Journal::open_read_only(&self.dirs).map_err(CliError::environment)? {
            (summary.events, summary.plugins) =
                journal.since(self.begun_ms, now_ms()).map_err(CliError::environment)?;
        }
        Ok(QueueState {
            spooled: summary.spooled as u64,
            open: summary.count(|plugin| plugin.due + plugin.waiting + plugin.running),
            due: summary.count(|plugin| plugin.due),
            running: summary.count(|plugin| plugin.running),
            ended: summary.events
                + summary.count(|plugin| plugin.done + plugin.dead + plugin.lost + plugin.refused),
        })
    }

    /// Returns the number of events in the spool and in the fallback directories.
    fn spooled(&self) -> usize {
        let elsewhere = health::elsewhere(&self.dirs);
        spool::depth(&self.dirs) + elsewhere.iter().map(|(_, count)| count).sum::<usize>()
    }

    /// Returns the size of the outputs of this command's events; none if Nix's database cannot be
    /// read.
    fn output_bytes(&self) -> Option<u64> {
        let journal = Journal::open_read_only(&self.dirs).ok()??;
        let paths: Vec<String> = journal.outputs(Some(self.begun_ms)).ok()?.into_iter().collect();
        let infos = hookrun_nix::database::Database::open(&NixDirs::from_env())
            .ok()?
            .path_infos(&paths)
            .ok()?;
        Some(infos.iter().flatten().map(|info| info.nar_size).sum())
    }

    /// Ends the worker of a private queue. Returns whether it has exited.
    fn stop_worker(&self) -> bool {
        let path = self.dirs.worker_lock();
        let begun = Instant::now();
        let mut asked = false;
        while let Some(pid) = lock::holder(&path) {
            if !asked && let Some(pid) = Pid::from_raw(pid) {
                // The worker may have exited already.
                let _asked = rustix::process::kill_process(pid, Signal::TERM);
                asked = true;
            }
            if begun.elapsed() > WORKER_STOP {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

/// Starts a worker while there is work, regardless of `start` in the configuration, because no
/// other process starts one for this queue.
struct Workers<'a> {
    session: &'a Session,
    started: Option<Instant>,
}

impl Workers<'_> {
    fn ensure(&mut self, seen: &QueueState) {
        let work = seen.spooled + seen.due > 0;
        let dirs = &self.session.dirs;
        let starting = self.started.is_some_and(|started| started.elapsed() < WORKER_START);
        if !work || starting || lock::is_held(&dirs.worker_lock()) {
            return;
        }
        self.started = Some(Instant::now());
        let mut arguments: Vec<&OsStr> = vec!["--state-dir".as_ref(), dirs.state.as_os_str()];
        if !is_missing(&dirs.config) {
            arguments.extend(["--config".as_ref(), dirs.config.as_os_str()]);
        }
        arguments.extend(spawn::ARGUMENTS.map(OsStr::new));
        if let Err(error) = spawn::detached(dirs, &arguments) {
            say(&format!("no worker can be started ({error}); events stay in the queue"));
        }
    }
}

/// Signals that are passed on to the command.
struct Signals {
    all: Vec<(Signal, tokio::signal::unix::Signal)>,
    /// Whether the terminal sends SIGINT and SIGQUIT to the command as well.
    terminal: bool,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let kinds = [
            (Signal::INT, SignalKind::interrupt()),
            (Signal::TERM, SignalKind::terminate()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
        ];
        let all = kinds
            .into_iter()
            .map(|(number, kind)| Ok((number, signal(kind)?)))
            .collect::<std::io::Result<_>>();
        let terminal = hookrun_system::process::is_in_foreground();
        Ok(Self { all: all.map_err(CliError::environment)?, terminal })
    }

    async fn next(&mut self) -> Signal {
        let waits = self.all.iter_mut().map(|(number, stream)| {
            let number = *number;
            Box::pin(async move {
                stream.recv().await;
                number
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}

/// Waits for the command, passes signals on to it, and keeps a worker running.
async fn wait_for(
    mut child: Child,
    signals: &mut Signals,
    workers: &mut Workers<'_>,
) -> Result<ExitStatus, CliError> {
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(CliError::environment),
            signal = signals.next() => {
                // The terminal sends its signals to all processes in the foreground. Nix would
                // treat a second one as a request to abort at once.
                let sent_already = signals.terminal && [Signal::INT, Signal::QUIT].contains(&signal);
                if !sent_already && let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                    // The command may have exited already.
                    let _sent = rustix::process::kill_process(pid, signal);
                }
            }
            () = tokio::time::sleep(LOOK) => {
                let spooled = workers.session.spooled() as u64;
                workers.ensure(&QueueState { spooled, ..QueueState::default() });
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| SIGNALLED + status.signal().unwrap_or_default())
}
