//! `hookrun queue wait`: waits until all tasks have ended.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::super::drain::open_tasks;
use super::{CliError, Context, Format, output};
use hookrun_nix::event::now_ms;
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::Open;
use hookrun_queue::{lock, spool};

/// The interval at which progress is checked.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 0: all tasks are done. 1: tasks are dead, lost or refused, or the timeout has passed. 4:
there is work and no worker.

Examples:
  hookrun queue wait
  hookrun queue wait --timeout 10m && echo uploaded")]
pub(in crate::cli) struct Args {
    /// Give up after this time, such as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The state of the tasks that `wait` waits for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RemainingTasks {
    /// Whether all tasks have ended.
    finished: bool,
    /// The number of events that no worker has taken.
    spooled: u64,
    due: u64,
    waiting: u64,
    running: u64,
    refused: u64,
    dead: u64,
    lost: u64,
    next_ms: Option<u64>,
}

impl RemainingTasks {
    fn look(context: &Context) -> Result<Self, CliError> {
        // The spool is read first, because an event that leaves it is already in the journal.
        let spooled = spool::depth(&context.dirs) as u64;
        let Open { due, waiting, running, refused, dead, lost, next_ms } = open_tasks(context)?;
        let finished = spooled + due + waiting + running == 0;
        Ok(Self { finished, spooled, due, waiting, running, refused, dead, lost, next_ms })
    }

    fn open(&self) -> u64 {
        self.spooled + self.due + self.waiting + self.running
    }

    fn failed(&self) -> bool {
        self.refused + self.dead + self.lost > 0
    }

    /// Formats the states of unsuccessful tasks with their numbers.
    fn failures(&self) -> String {
        let counts = [(self.dead, "dead"), (self.lost, "lost"), (self.refused, "refused")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        counts.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let begun = Instant::now();
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let end = |left: &RemainingTasks, exit: Exit, message: String| {
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        match args.format {
            Format::Json => output::json(left)?,
            Format::Text => output::print(&message)?,
        }
        Ok(exit)
    };
    loop {
        let left = RemainingTasks::look(context)?;
        if left.finished && left.failed() {
            let message =
                format!("not all tasks are done: {}; see `hookrun status`\n", left.failures());
            return end(&left, Exit::Failed, message);
        }
        if left.finished {
            return end(&left, Exit::Done, "all tasks are done\n".to_owned());
        }
        let open = left.open();
        if args.timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let message = format!(
                "the timeout has passed, and {open} tasks or events are left: see `hookrun queue list`\n"
            );
            return end(&left, Exit::Failed, message);
        }
        if !lock::is_held(&context.dirs.worker_lock()) && !has_started(context)? {
            let message = format!(
                "{open} tasks or events are left, but no worker runs; run `hookrun drain`, or start the service"
            );
            return Err(CliError::environment(anyhow::Error::msg(message)));
        }
        if let Some(bar) = &bar {
            let next = left
                .next_ms
                .filter(|_| left.running + left.due == 0)
                .map(|when| output::duration(when.saturating_sub(now_ms())));
            let next = next.map(|next| format!(", next attempt in {next}")).unwrap_or_default();
            bar.set_message(format!("{open} left, {} running{next}", left.running));
            bar.tick();
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits for a worker that a hook has started, which needs a moment to take its lock. Returns
/// whether it runs, or has done everything meanwhile.
fn has_started(context: &Context) -> Result<bool, CliError> {
    for _ in 0..20 {
        std::thread::sleep(LOOK);
        if lock::is_held(&context.dirs.worker_lock()) || RemainingTasks::look(context)?.finished {
            return Ok(true);
        }
    }
    Ok(false)
}
