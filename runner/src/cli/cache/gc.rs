//! `hookrun cache gc`.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::super::output::{self, Format, printable};
use super::super::{CliError, Context};
use super::place::{self, CacheArg, PARALLEL};
use super::progress::Bar;
use hookrun_cache::gc::{self, Dead, GRACE, Options, Report, SETTLE, Step};
use hookrun_cache::plan::Amount;
use hookrun_cache::roots::Roots;
use hookrun_nix::exit_code::Exit;

/// The size limit of a list of roots in bytes.
const MAX_LIST: u64 = 256 << 20;
/// The number of dead paths that are shown.
const SHOWN: usize = 30;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keeps the roots and everything that they refer to: the pins of the cache (`hookrun cache pin`), and
the paths that the options name. Without --run, nothing is changed, and the command shows what would
be removed.

With --run, what no root reaches is condemned. A later run with --run removes what was condemned for
the grace period and is still not reachable; it first waits for uploads that may still rely on it
(--settle). So run it regularly, for example once a day. It is safe beside uploads by hookrun, and
beside other runs that have the same roots. The grace period must be longer than the longest upload.
Incomplete uploads that are older than the grace period are ended.

Examples:
  hookrun cache gc cache --keep-newer-than 90d
  hookrun cache gc cache --keep-newer-than 90d --roots-file releases.txt --run")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    cache: CacheArg,
    /// Condemn, and remove what was condemned for the grace period
    #[arg(long)]
    run: bool,
    /// Keep the store paths in FILE, one on each line; `-` is standard input; repeatable
    #[arg(long, value_name = "FILE")]
    roots_file: Vec<PathBuf>,
    /// Keep what the garbage collector roots of the local Nix reach
    #[arg(long)]
    local_gcroots: bool,
    /// Keep paths that were uploaded in this time
    #[arg(long, value_name = "DURATION", value_parser = place::duration)]
    keep_newer_than: Option<Duration>,
    /// The time between condemnation and removal [default: 2days]
    #[arg(long, value_name = "DURATION", value_parser = place::duration)]
    grace: Option<Duration>,
    /// How long a removal waits for uploads that may rely on condemned paths [default: 3m]
    #[arg(long, value_name = "DURATION", value_parser = place::duration)]
    settle: Option<Duration>,
    /// Collect although there is no root at all, which removes everything
    #[arg(long)]
    without_roots: bool,
    /// Show all dead paths
    #[arg(long)]
    all: bool,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Output {
    place: String,
    dry_run: bool,
    roots: Vec<(String, u64)>,
    reachable: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_newer_than_s: Option<u64>,
    /// Paths that are too new to be condemned.
    too_new: u64,
    malformed_narinfos: u64,
    /// Dead objects that stay for now.
    waiting: Amount,
    /// Dead objects that this run removes, or would.
    removable: Amount,
    dead: Vec<Dead>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let cache = place::open(context, &args.cache.cache).await?;
    let mut roots = Roots::default();
    for file in &args.roots_file {
        let text = read_list(file)?;
        roots.add_list(&cache, &file.display().to_string(), &text)?;
    }
    if args.local_gcroots {
        roots.add_local(&cache)?;
    }
    let bar = Bar::new();
    let grace = args.grace.unwrap_or(GRACE);
    let options = Options {
        grace: grace.as_secs(),
        keep_newer_than: args.keep_newer_than.map(|age| age.as_secs()),
        parallel: usize::from(args.parallel).min(PARALLEL * 32),
    };
    let settle = args.settle.unwrap_or(SETTLE);
    let mut step = |step| match step {
        Step::Listed(count) => bar.show("objects listed", count, 0),
        Step::Read(done, of) => bar.show("narinfos read", done, of),
        Step::Settling => bar.line(&format!(
            "waits {} for uploads that may rely on condemned paths",
            humantime::format_duration(settle)
        )),
        Step::Removed(done, of) => bar.show("objects removed", done, of),
    };
    let survey = gc::survey(&cache, &roots, &options, None, &mut step).await?;
    if survey.root_count == 0 && args.keep_newer_than.is_none() && !args.without_roots {
        return Err(CliError::usage(format!(
            "there is no root, so everything in {} would be removed; pin paths with `hookrun cache \
             pin`, or use --keep-newer-than, --roots-file or --local-gcroots",
            cache.bucket().place()
        )));
    }
    let (waiting, removable) = survey.amounts();
    let mut output = Output {
        place: cache.bucket().place().to_owned(),
        dry_run: !args.run,
        roots: survey.roots.clone(),
        reachable: survey.plan.reachable.count,
        keep_newer_than_s: options.keep_newer_than,
        too_new: survey.plan.too_young,
        malformed_narinfos: survey.plan.malformed,
        waiting,
        removable,
        dead: survey.dead(),
        report: None,
    };
    if args.run {
        let settled = tokio::time::sleep(settle);
        output.report = Some(gc::run(&cache, &roots, &options, survey, settled, &mut step).await?);
    }
    drop(bar);
    let stopped = output.report.as_ref().is_some_and(|report| report.stopped_early);
    match args.format {
        Format::Json => output::json(&output)?,
        Format::Text => output::print(&text(&output, grace, args.all))?,
    }
    Ok(if stopped { Exit::Failed } else { Exit::Done })
}

fn read_list(file: &PathBuf) -> Result<String, CliError> {
    let failed = |error: std::io::Error| {
        CliError::usage(format!("{} cannot be read ({error}); check --roots-file", file.display()))
    };
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_LIST).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(file).map_err(failed)?;
        file.take(MAX_LIST).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

fn text(output: &Output, grace: Duration, all: bool) -> String {
    let mut text = String::new();
    let shown = if all { output.dead.len() } else { SHOWN };
    let mut rows = Vec::new();
    for dead in output.dead.iter().take(shown) {
        let state = match dead.condemned {
            _ if dead.removable => "removable".to_owned(),
            Some(since) => {
                format!("condemned at {}", output::time(since.saturating_mul(1000)))
            }
            None => "not reachable".to_owned(),
        };
        rows.push(vec![printable(&dead.name), output::bytes(dead.bytes), state]);
    }
    text.push_str(&output::table(&rows));
    if output.dead.len() > shown {
        let _ = writeln!(text, "... and {} more; --all shows them", output.dead.len() - shown);
    }
    let paths =
        |count: u64| if count == 1 { "1 path".to_owned() } else { format!("{count} paths") };
    let roots = output.roots.iter();
    let mut roots: Vec<String> =
        roots.map(|(name, count)| format!("{} of {}", paths(*count), printable(name))).collect();
    if let Some(age) = output.keep_newer_than_s {
        let age = humantime::format_duration(Duration::from_secs(age));
        roots.push(format!("paths newer than {age}"));
    }
    let _ = writeln!(text, "Roots: {}. Reachable: {}.", roots.join(", "), paths(output.reachable));
    if output.too_new > 0 {
        let _ = writeln!(
            text,
            "Not reachable, but uploaded too recently to be condemned: {}.",
            paths(output.too_new)
        );
    }
    if output.malformed_narinfos > 0 {
        let _ = writeln!(
            text,
            "Malformed narinfos: {}. They are kept; see `hookrun cache verify --repair`.",
            output.malformed_narinfos
        );
    }
    let objects = |amount: &Amount| {
        let word = if amount.count == 1 { "object" } else { "objects" };
        format!("{} {word}, {}", amount.count, output::bytes(amount.bytes))
    };
    let grace = humantime::format_duration(grace);
    match &output.report {
        None => {
            let _ = writeln!(
                text,
                "Dry run. With --run: {} would be removed now, and {} at least {grace} after they \
                 are condemned.",
                objects(&output.removable),
                objects(&output.waiting)
            );
        }
        Some(report) => {
            let _ = writeln!(text, "Removed: {}.", objects(&report.removed));
            if report.condemned > 0 {
                let _ = writeln!(
                    text,
                    "Condemned: {} objects; a run at least {grace} later removes them.",
                    report.condemned
                );
            }
            match report.ended_uploads {
                Some(count) if count > 0 => {
                    let _ = writeln!(text, "Ended incomplete uploads: {count}.");
                }
                Some(_) => {}
                None => text.push_str(
                    "Incomplete uploads cannot be listed here; give the bucket a lifecycle rule \
                     for them.\n",
                ),
            }
            if let Some(until) = report.swept_by_another_until {
                let _ = writeln!(
                    text,
                    "Nothing was removed: another run removes objects until {}.",
                    output::time(until.saturating_mul(1000))
                );
            }
            if report.stopped_early {
                text.push_str(
                    "Stopped early: the announcement of the removal is not valid any longer. Run \
                     the command again.\n",
                );
            }
        }
    }
    text
}
