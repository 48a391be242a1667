//! `hookrun queue show`: shows one event with its tasks and their attempts.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::super::output::{Style, printable, style_of, styled};
use super::list::state;
use super::{CliError, Context, Format, differences, one_event, output, state_dir};
use hookrun_nix::event::{Event, HookEvent, Origin};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::journal::{AttemptRow, LogFilter, TaskRow};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  hookrun queue show 0192f3a1-7c7e")]
pub(in crate::cli) struct Args {
    /// The beginning of an event's id
    event: String,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One event, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct EventReport {
    event: Option<Event>,
    tasks: Vec<TaskRow>,
    attempts: Vec<AttemptRow>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Some(journal) = state_dir::journal(context)? else {
        return Err(CliError::environment(anyhow::anyhow!(
            "there is no journal yet; run `hookrun drain` to create it"
        )));
    };
    let mut tasks = journal.tasks().map_err(CliError::environment)?;
    tasks.retain(|task| task.event.id.starts_with(&args.event));
    let id = {
        let ids: BTreeSet<&str> = tasks.iter().map(|task| task.event.id.as_str()).collect();
        one_event(&args.event, &ids)?.to_owned()
    };
    let mut attempts = journal.log(&LogFilter::default()).map_err(CliError::environment)?;
    attempts.retain(|attempt| attempt.event.id == id);
    let shown =
        EventReport { event: journal.event(&id).map_err(CliError::environment)?, tasks, attempts };
    match args.format {
        Format::Json => output::json(&shown)?,
        Format::Text => output::print(&text(&id, &shown, output::colours()))?,
    }
    Ok(Exit::Done)
}

fn text(id: &str, shown: &EventReport, colours: bool) -> String {
    let mut text = format!("{}\n", styled(id, Style::Strong, colours));
    if let Some(event) = &shown.event {
        let _ = writeln!(
            text,
            "{} of {} at {}, reported by {}",
            event.kind(),
            printable(event.drv_path()),
            output::time(event.time_ms),
            match event.origin {
                Origin::Hook => "the hook",
                Origin::Sync => "`hookrun sync`",
            }
        );
    }
    if let Some(Event { hook: HookEvent::Diff(diff), .. }) = &shown.event {
        text.push_str(&differences::text(&diff.evidence, usize::MAX, colours));
    }
    for task in &shown.tasks {
        let word = styled(&state(task), style_of(task.state.as_str()), colours);
        let _ = writeln!(text, "\n{}  {word}", styled(&task.plugin, Style::Strong, colours));
        for attempt in shown.attempts.iter().filter(|attempt| attempt.plugin == task.plugin) {
            let class = styled(attempt.class.as_str(), style_of(attempt.class.as_str()), colours);
            let _ = writeln!(
                text,
                "  {}  attempt {}  {class}",
                output::time(attempt.end_ms),
                attempt.number
            );
            let _ = writeln!(text, "    {}", printable(&attempt.message));
        }
    }
    text
}
