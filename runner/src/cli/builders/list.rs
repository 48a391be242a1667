//! `hookrun builders list`: lists the machines, their load and their health.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::super::output::{self, Format, Style, printable, styled};
use super::super::{CliError, Context};
use super::fleet::{MachineList, Machines};
use super::measured;
use hookrun_builders::choice::health::{Availability, availability};
use hookrun_builders::history::{BuildOutcome, BuildRow, MachineHealth, RowSelection, now_ms};
use hookrun_builders::slots::reservations::{Account, ResourceUse};
use hookrun_builders::slots::slot_files::SlotFiles;
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::machines::MachineLine;

/// The period over which the throughput is counted.
const LATELY: Duration = Duration::from_hours(24);
/// The index of the column after which counted resources are shown.
const RESOURCES_AFTER: usize = 2;
/// The interval of `--watch`.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Slots and load come from Nix's own lock files, and include builds of every Nix on this machine.
Health, errors, connections and builds come from the records of hookrun's sessions.

Examples:
  hookrun builders list --watch
  hookrun builders list --format json | jq '.[] | select(.state == \"out\")'")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    machines: Machines,
    /// Repeat every second
    #[arg(long, conflicts_with = "format")]
    watch: bool,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One machine, as `--format json` prints it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    machine: String,
    systems: Vec<String>,
    slots: u32,
    load: u32,
    speed_factor: f64,
    /// `good`, `unknown`, `due` (failed, but may be tried again) or `out`.
    state: &'static str,
    /// The remaining time for which the machine is out.
    out_ms: Option<u64>,
    failures: u32,
    last_error: Option<String>,
    connect_ms: Option<u32>,
    /// Counted resources besides slots, as configured.
    resources: Vec<ResourceUse>,
    /// The number of successful builds in the last day.
    built: usize,
    /// The number of failed builds in the last day.
    not_built: usize,
    /// The median duration of the successful builds.
    median_ms: Option<u64>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let MachineList { machines, nix } =
        MachineList::find(&args.machines)?.some_or_empty_json(args.format)?;
    let slot_files = SlotFiles::below(&state_dir(nix.setting("store")));
    let limits = context.config()?.builders.resources;
    loop {
        let account = Account::now(&limits, &context.dirs.builders());
        let rows = rows(context, &machines, &slot_files, &account)?;
        match args.format {
            Format::Json => output::json(&rows)?,
            Format::Text => {
                // Moves the cursor home and clears to the end of the screen (ECMA-48, CUP and ED).
                let clear = if args.watch { "\u{1b}[H\u{1b}[J" } else { "" };
                output::print(&format!("{clear}{}", text(&rows, output::colours())))?;
            }
        }
        if !args.watch {
            return Ok(Exit::Done);
        }
        std::thread::sleep(WATCH);
    }
}

/// Returns the state directory of Nix, which contains the slot files. It depends on the store.
fn state_dir(store: &str) -> std::path::PathBuf {
    hookrun_builders::protocol::settings::state_dir_of(store)
        .unwrap_or_else(|| NixDirs::from_env().state)
}

fn rows(
    context: &Context,
    machines: &[MachineLine],
    slot_files: &SlotFiles,
    account: &Account<'_>,
) -> Result<Vec<Row>, CliError> {
    let now = now_ms();
    let (health, builds) = match measured::record(context)? {
        Some(record) => (
            record.machines().map_err(CliError::environment)?,
            record
                .builds(RowSelection::Last(measured::LOOKED_AT))
                .map_err(CliError::environment)?,
        ),
        None => Default::default(),
    };
    let since = now.saturating_sub(u64::try_from(LATELY.as_millis()).unwrap_or(u64::MAX));
    let lately: Vec<BuildRow> = builds
        .into_iter()
        .filter(|build| build.ended_ms.is_some_and(|ended| ended >= since))
        .collect();
    let loads = slot_files.loads(machines.iter().map(|line| (line.uri.as_str(), line.max_jobs)));
    let row = |(line, load): (&MachineLine, u32)| Row {
        resources: account.of_machine(&line.uri),
        ..row(line, load, health.get(line.uri.as_str()), &lately, now)
    };
    Ok(machines.iter().zip(loads).map(row).collect())
}

fn row(
    line: &MachineLine,
    load: u32,
    health: Option<&MachineHealth>,
    lately: &[BuildRow],
    now: u64,
) -> Row {
    let (state, out_ms) = match availability(health, now) {
        Availability::Out { ms } => ("out", Some(ms)),
        Availability::Due => ("due", None),
        Availability::Proven => ("good", None),
        Availability::Unknown => (
            if health.is_some_and(|health| health.succeeded_ms.is_some()) {
                "good"
            } else {
                "unknown"
            },
            None,
        ),
    };
    let here: Vec<&BuildRow> = lately.iter().filter(|build| line.uri == build.machine).collect();
    let built: Vec<f64> = here
        .iter()
        .filter(|build| build.outcome == Some(BuildOutcome::Built))
        .map(|build| build.seconds.unwrap_or(0.0) * 1000.0)
        .collect();
    Row {
        machine: line.uri.clone(),
        systems: line.systems.clone(),
        slots: line.max_jobs,
        load,
        speed_factor: line.speed_factor,
        state,
        out_ms,
        failures: health.map_or(0, |health| health.failures),
        last_error: health.and_then(|health| health.last_error.clone()),
        connect_ms: health.and_then(|health| health.connect_ms),
        resources: Vec::new(),
        built: built.len(),
        not_built: here.len() - built.len(),
        median_ms: measured::median(built).and_then(measured::whole_ms),
    }
}

fn text(rows: &[Row], colours: bool) -> String {
    let own = |row: &Row| -> Vec<String> {
        let own = row.resources.iter().filter(|left| !left.shared);
        own.map(|left| format!("{} {}", left.name, left.ratio())).collect()
    };
    let counted = rows.iter().any(|row| !own(row).is_empty());
    let mut head =
        vec!["machine", "slots", "factor", "health", "connect", "24 h", "median", "last error"];
    if counted {
        head.insert(RESOURCES_AFTER, "resources");
    }
    let mut cells: Vec<Vec<String>> =
        vec![head.iter().map(|head| styled(head, Style::Faint, colours)).collect()];
    for row in rows {
        let (health, style) = match (row.state, row.out_ms) {
            ("out", Some(ms)) => {
                (format!("out for {}", output::duration(ms / 1000 * 1000)), Style::Bad)
            }
            ("good", _) => ("good".to_owned(), Style::Good),
            ("due", _) => ("retry due".to_owned(), Style::Warning),
            (other, _) => (other.to_owned(), Style::Plain),
        };
        let full = if row.load >= row.slots { Style::Warning } else { Style::Plain };
        let mut builds = format!("{} builds", row.built);
        if row.not_built > 0 {
            let _ = write!(builds, ", {} failed", row.not_built);
        }
        let mut line = vec![
            styled(&printable(&row.machine), Style::Strong, colours),
            styled(&format!("{}/{}", row.load, row.slots), full, colours),
            row.speed_factor.to_string(),
            styled(&health, style, colours),
            row.connect_ms.map_or_else(|| "-".to_owned(), |ms| output::duration(u64::from(ms))),
            builds,
            row.median_ms.map_or_else(|| "-".to_owned(), output::duration),
            row.last_error
                .as_deref()
                .filter(|_| row.failures > 0)
                .map(printable)
                .unwrap_or_default(),
        ];
        if counted {
            line.insert(RESOURCES_AFTER, printable(&own(row).join(", ")));
        }
        cells.push(line);
    }
    let mut text = output::table(&cells);
    // Shared resources are the same in each row.
    for left in rows.first().into_iter().flat_map(|row| &row.resources).filter(|left| left.shared) {
        let _ =
            writeln!(text, "shared by all machines: {} {}", printable(&left.name), left.ratio());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::machines;

    #[test]
    fn each_machine_has_one_line() {
        let machines =
            machines::parse("ssh://a - - 4 2 ; ssh://b ; ssh://c ; ssh://d", "x86_64-linux")
                .machines;
        let now = 10_000_000;
        let health = |failures, retry_ms, succeeded_ms| MachineHealth {
            failures,
            retry_ms,
            succeeded_ms,
            last_error: Some("failed to start SSH\u{1b}[31m".to_owned()),
            connect_ms: Some(340),
            ..MachineHealth::default()
        };
        let known = [
            health(0, None, Some(now - 5)),
            health(2, Some(now + 90_000), None),
            health(1, Some(now - 1), None),
        ];
        let mut rows: Vec<Row> = machines
            .iter()
            .enumerate()
            .map(|(index, line)| row(line, 1, known.get(index), &[], now))
            .collect();
        insta::assert_snapshot!(text(&rows, false));
        let left =
            |name: &str, shared| ResourceUse { name: name.to_owned(), taken: 1, total: 2, shared };
        for (index, row) in rows.iter_mut().enumerate() {
            row.resources.extend((index == 1).then(|| left("gpu", false)));
            row.resources.push(left("licence", true));
        }
        insta::assert_snapshot!(text(&rows, false));
    }
}
