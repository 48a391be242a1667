//! `hookrun ci -- CMD`: sets hooks for this command only, waits for its uploads, and reports
//! unfinished work in the exit code.
//!
//! The hooks are set through `NIX_CONFIG` of the command ([`hooks`]), which Nix sends on to a
//! daemon that trusts the user. Another daemon would ignore them silently: [`daemon_access`] finds
//! that out beforehand, and built paths are then looked up in Nix's database. Workers are those
//! that hooks start too, so nothing is left running when this process is killed. The command keeps
//! its own standard streams: all messages go to standard error.

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
use self::idle_timeout::{IdleTimeout, Seen, Verdict};
use self::own_hooks::OwnHooks;
use self::summary::Summary;
use super::output::printable;
use super::{CliError, Context, sync};
use crate::supervise::supervisor::Supervisor;
use hookrun_config::{Config, is_away};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{NixDirs, now_ms};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::Journal;
use hookrun_queue::worker::Executor as _;
use hookrun_queue::{health, lock, spawn, spool};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// A worker that was started has this long to take its lock before another is started.
const WORKER_START: Duration = Duration::from_secs(5);
/// How long a worker may take to leave a private state directory: as long as its runs may take once
/// it is asked to stop, and some more.
const WORKER_STOP: Duration = Duration::from_secs(15);
/// What shells return for a command that is not there, and for one that a signal ended
/// (POSIX.1-2024, XCU 2.8.2).
const NOT_FOUND: u8 = 127;
const SIGNALLED: i32 = 128;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every build of CMD is handed over; workers run beside it. After CMD has ended, hookrun waits for the
rest while there is progress: an event is taken, or a task ends or runs. Events stay in the queue, so
the next worker goes on with what is unfinished. A post-build-hook or diff-hook of your own
configuration is called as well.

A Nix daemon takes hooks from users in `trusted-users` only. For other users, and where no hook was
called, hookrun hands over what was built meanwhile according to Nix's database.

Exit code: CMD's own if it failed (128 plus the signal's number if a signal ended it, 127 if it does
not exist). 1: an event or task is unfinished, dead, refused or set aside. 0: everything is done. 3:
the configuration is wrong, and CMD was not run.

Examples:
  hookrun ci -- nix-build -A everything
  hookrun ci --wait-idle 20m --report summary.json -- nix build .#checks
  hookrun ci --private --diff-hook -- nix-build --check -A hello")]
pub(super) struct Args {
    /// Also report builds that differ (`nix-build --check`): set run-diff-hook and diff-hook
    #[arg(long)]
    diff_hook: bool,
    /// Also choose builders: set build-hook
    #[arg(long)]
    build_hook: bool,
    /// Use a queue of this command's own, in a directory that is removed when everything is done
    #[arg(long)]
    private: bool,
    /// Stop waiting after this time without progress; 0s: do not wait
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
    // A configuration that is wrong should be known before an hour of building.
    let config = context.config()?;
    let work = hooks::WorkDirectory::create().map_err(CliError::environment)?;
    let mut dirs = context.dirs.clone();
    if args.private {
        dirs.state = work.private_state().map_err(CliError::environment)?;
    }
    // Hooks run in another directory.
    for path in [&mut dirs.config, &mut dirs.state] {
        *path = std::path::absolute(&*path)?;
    }
    let reach = daemon_access::find(&NixDirs::from_env());
    // A daemon that does not trust this user calls no other hooks than before.
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
                    "cannot write the summary to {}; name a file you may write to",
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
                "the queue is kept: hookrun --state-dir {} drain goes on with it",
                session.dirs.state.display()
            ));
        }
    } else if !args.private {
        work.remove();
    }
    Ok(summary.exit())
}

/// One line on standard error, where the command writes too.
fn say(message: &str) {
    hookrun_nix::terminal::say(&printable(message));
}

/// The queue that this command's events go to.
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
                "the Nix daemon ignores the hooks of this user, who is not in `trusted-users`; what was built is looked up in Nix's database \
                 afterwards. For hooks, add the user to `trusted-users` in /etc/nix/nix.conf and restart nix-daemon, or set post-build-hook there",
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
                say(&format!("`{}` does not start ({error})", program.to_string_lossy()));
                i32::from(NOT_FOUND)
            }
        };
        let without_hooks = reach == (DaemonAccess::Daemon { trusted: false });
        self.look(&mut summary)?;
        if without_hooks || (summary.events == 0 && summary.spooled == 0) {
            match self.look_up() {
                Ok(found) => summary.found_afterwards = found,
                // Without hooks there is nothing else to go by; else maybe no Nix was used at all.
                Err(error) if without_hooks => {
                    say(&format!("what was built cannot be looked up: {error}"));
                }
                Err(_) => {}
            }
            if summary.found_afterwards > 0 && !without_hooks {
                say(
                    "no hook was called for what was built, so it is taken from Nix's database; does the command set hooks of its own, or \
                     run Nix in another environment, as sudo does?",
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
            summary.finished = verdict == Verdict::Finished;
            if verdict != Verdict::Wait {
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
                    say("interrupted: not waiting any longer; unfinished tasks stay in the queue");
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

    /// Hands over what Nix's database says was built since the command began; returns how many
    /// events that were.
    fn look_up(&self) -> Result<usize, CliError> {
        // Nix registers with whole seconds.
        let wanted = sync::Wanted {
            since_ms: Some(self.begun_ms / 1000 * 1000),
            built: true,
            ..sync::Wanted::default()
        };
        let report = sync::enqueue(&self.dirs, &wanted, sync::Mode::default(), &mut |_| {})?;
        Ok(report.enqueued)
    }

    /// Events of this command that a plugin of `config` wants and that became no task, because the
    /// worker that took them had another configuration.
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

    /// Looks at the state of this command's events.
    fn look(&self, summary: &mut Summary) -> Result<Seen, CliError> {
        // The spool first: an event that leaves it is in the journal already.
        summary.spooled = self.spooled();
        if let Some(journal) = Journal::open_read_only(&self.dirs).map_err(CliError::environment)? {
            (summary.events, summary.plugins) =
                journal.since(self.begun_ms, now_ms()).map_err(CliError::environment)?;
        }
        Ok(Seen {
            spooled: summary.spooled as u64,
            open: summary.count(|plugin| plugin.due + plugin.waiting + plugin.running),
            due: summary.count(|plugin| plugin.due),
            running: summary.count(|plugin| plugin.running),
            ended: summary.events
                + summary.count(|plugin| plugin.done + plugin.dead + plugin.lost + plugin.refused),
        })
    }

    /// Events in the spool and in the fallback directories.
    fn spooled(&self) -> usize {
        let elsewhere = health::elsewhere(&self.dirs);
        spool::depth(&self.dirs) + elsewhere.iter().map(|(_, count)| count).sum::<usize>()
    }

    /// Bytes of the outputs of this command's events; none if Nix's database does not tell.
    fn output_bytes(&self) -> Option<u64> {
        let journal = Journal::open_read_only(&self.dirs).ok()??;
        let paths: Vec<String> = journal.outputs(Some(self.begun_ms)).ok()?.into_iter().collect();
        let infos = hookrun_nix::database::Database::open(&NixDirs::from_env())
            .ok()?
            .path_infos(&paths)
            .ok()?;
        Some(infos.iter().flatten().map(|info| info.nar_size).sum())
    }

    /// Ends the worker of a private queue; true once it has left.
    fn stop_worker(&self) -> bool {
        let path = self.dirs.worker_lock();
        let begun = Instant::now();
        let mut asked = false;
        while let Some(pid) = lock::holder(&path) {
            if !asked && let Some(pid) = Pid::from_raw(pid) {
                // It may be gone by now.
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

/// Starts a worker while there is work, whatever `start` the configuration has: nobody else may do
/// so here.
struct Workers<'a> {
    session: &'a Session,
    started: Option<Instant>,
}

impl Workers<'_> {
    fn ensure(&mut self, seen: &Seen) {
        let work = seen.spooled + seen.due > 0;
        let dirs = &self.session.dirs;
        let starting = self.started.is_some_and(|started| started.elapsed() < WORKER_START);
        if !work || starting || lock::is_held(&dirs.worker_lock()) {
            return;
        }
        self.started = Some(Instant::now());
        let mut arguments: Vec<&OsStr> = vec!["--state-dir".as_ref(), dirs.state.as_os_str()];
        if !is_away(&dirs.config) {
            arguments.extend(["--config".as_ref(), dirs.config.as_os_str()]);
        }
        arguments.extend(spawn::ARGUMENTS.map(OsStr::new));
        if let Err(error) = spawn::detached(dirs, &arguments) {
            say(&format!("no worker can be started ({error}); events stay in the queue"));
        }
    }
}

/// Signals that are handed on to the command.
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

/// Waits for the command, hands it the signals that this process gets, and keeps a worker at work.
async fn wait_for(
    mut child: Child,
    signals: &mut Signals,
    workers: &mut Workers<'_>,
) -> Result<ExitStatus, CliError> {
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(CliError::environment),
            signal = signals.next() => {
                // The terminal's own go to all processes in the foreground; twice would look like
                // an impatient person to Nix.
                let sent_already = signals.terminal && [Signal::INT, Signal::QUIT].contains(&signal);
                if !sent_already && let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
                    // It may be gone by now.
                    let _sent = rustix::process::kill_process(pid, signal);
                }
            }
            () = tokio::time::sleep(LOOK) => {
                let spooled = workers.session.spooled() as u64;
                workers.ensure(&Seen { spooled, ..Seen::default() });
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| SIGNALLED + status.signal().unwrap_or_default())
}
