//! `hookrun builders simulate`: simulates a trace with Nix's own rule and with policies.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};

use super::super::output::{self, Format, Style, printable, styled};
use super::super::test::subject_error;
use super::super::{CliError, Context};
use super::measured::in_style;
use super::trace::Generated;
use crate::testing::{self, Changes, PolicyHere, Subject};
use hookrun_builders::Policy;
use hookrun_builders::choice::policy::{Division, StockRule};
use hookrun_config::Resources;
use hookrun_host::{Compiler, Host};
use hookrun_nix::exit_code::Exit;
use hookrun_nix::machines::{self, MachineLine};
use hookrun_simulate::compare::{Comparison, compare};
use hookrun_simulate::trace::{DEFAULT_MB_PER_S, Trace, TraceMachine};
use hookrun_simulate::{chart, svg};

/// The policy that is simulated if none is named.
const DEFAULT_POLICY: &str = "bundled:speed-factor";
/// The number of machines that are listed individually.
const SHOWN_MACHINES: usize = 12;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every rule builds the same trace. A rule sees what a host can know: speed factors and past
durations, but not how long a build will take. Nix's own rule postpones a build when no slot is
free, and is asked again at the next multiple of 5 s. With a policy, hookrun's queue assigns a free
slot immediately. The lower bound is the larger of two values: the total work divided by the total
capacity, and the longest chain on the fastest machine, without transfers. A rule cannot always
reach it.

With --trace, the resources in [builders.machine-resources] and related tables count for policies.
Nix's own rule does not know them, so it may run more builds at once than the memory allows.

Examples:
  hookrun builders simulate --generate 1,500,four --seeds 20
  hookrun builders simulate --trace trace.jsonl --machines /etc/nix/machines --svg out.svg
  hookrun builders simulate --trace trace.jsonl --policy bundled:speed-factor --policy ./mine.wasm")]
pub(in crate::cli) struct Args {
    /// A trace file written by `hookrun builders trace`
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "generate",
        conflicts_with = "generate"
    )]
    trace: Option<PathBuf>,
    /// Generate a trace: seed, number of derivations, fleet (`four` or `fifty` machines)
    #[arg(long, value_name = "SEED,NODES,FLEET")]
    generate: Option<Generated>,
    /// With --generate: the number of traces; the first has the seed SEED
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), requires = "generate")]
    seeds: u16,
    /// Use the machines of this machines file instead of those in the trace. Their speed factors
    /// count as their true speeds
    #[arg(long, value_name = "FILE")]
    machines: Option<PathBuf>,
    /// A policy to simulate: a plugin of the configuration, a file, or `bundled:NAME`; may be
    /// repeated [default: bundled:speed-factor]
    #[arg(long, value_name = "PLUGIN")]
    policy: Vec<String>,
    /// Set a key of the policies' `config`, such as `keep-free = []`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Divide the load by the speed factor as whole numbers, as Nix 2.19 and older do
    #[arg(long)]
    whole_speed_factors: bool,
    /// Write a chart to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let traces = traces(args)?;
    let limits = limits(context, args, &traces)?;
    // Opened now, because no file can be opened once guest code is mapped.
    let picture =
        args.svg.as_deref().map(|path| create(path).map(|file| (path, file))).transpose()?;
    let policies = policies(context, args)?;
    let policies: Vec<(String, &dyn Policy)> = policies
        .iter()
        .map(|(name, policy)| -> (String, &dyn Policy) { (name.clone(), policy) })
        .collect();
    let division = if args.whole_speed_factors { Division::Integer } else { Division::Float };
    let comparison = compare(&traces, StockRule { division }, &limits, &policies);
    if let Some((path, mut file)) = picture {
        file.write_all(svg::picture(&comparison, &title(&comparison, args)).as_bytes())
            .map_err(|error| unwritable(path, error))?;
    }
    match args.format {
        Format::Json => output::json(&in_style(&comparison)?)?,
        Format::Text => output::print(&text(&comparison, args, output::colours()))?,
    }
    let failed = comparison.rules.iter().any(|rule| rule.problem.is_some() || rule.never > 0);
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn traces(args: &Args) -> Result<Vec<Trace>, CliError> {
    let mut traces = match (&args.trace, args.generate) {
        (Some(path), _) => vec![read(path)?],
        (None, Some(generated)) => (0..args.seeds)
            .map(|number| {
                Generated { seed: generated.seed.wrapping_add(u64::from(number)), ..generated }
                    .trace()
            })
            .collect(),
        (None, None) => {
            return Err(CliError::usage("write --trace FILE, or --generate 1,500,four"));
        }
    };
    if let Some(path) = &args.machines {
        let found = machines_of(path)?;
        for trace in &mut traces {
            trace.machines = found.iter().map(|line| as_in_trace(line, &trace.machines)).collect();
        }
    }
    if let Some(empty) =
        traces.iter().find(|trace| trace.machines.is_empty() || trace.derivations.is_empty())
    {
        let missing = if empty.machines.is_empty() {
            "machines; name some with --machines FILE"
        } else {
            "derivations"
        };
        return Err(CliError::usage(format!("the trace has no {missing}")));
    }
    Ok(traces)
}

/// Returns the resources that builds need besides a slot: for a recorded trace, those of the
/// configuration. A generated trace has its own machines and no resources.
fn limits(context: &Context, args: &Args, traces: &[Trace]) -> Result<Resources, CliError> {
    if args.trace.is_none() {
        return Ok(Resources::default());
    }
    let limits = context.config()?.builders.resources;
    let known = |uri: &String| {
        traces.iter().flat_map(|trace| &trace.machines).any(|machine| machine.name == *uri)
    };
    for uri in limits.machines.keys().filter(|uri| !known(uri)) {
        eprintln!(
            "warning: [builders.machine-resources.\"{}\"] has no effect: no machine has this name",
            printable(uri)
        );
    }
    Ok(limits)
}

fn read(path: &Path) -> Result<Trace, CliError> {
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    Trace::read(BufReader::new(file)).map_err(|error| {
        let message = format!(
            "{}: {error} (the format is described in docs/build-traces.md)",
            path.display()
        );
        CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) }
    })
}

fn machines_of(path: &Path) -> Result<Vec<MachineLine>, CliError> {
    let text = std::fs::read(path).map_err(|error| unreadable(path, error))?;
    let this_system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let found = machines::parse_as(&text, &this_system, || None);
    for warning in &found.warnings {
        eprintln!("warning: {}: {}", path.display(), printable(warning));
    }
    Ok(found.machines)
}

/// Returns a machine of a machines file, with the values of the trace's machine of that name.
fn as_in_trace(line: &MachineLine, known: &[TraceMachine]) -> TraceMachine {
    let known = known.iter().find(|machine| line.uri == machine.name);
    TraceMachine {
        name: line.uri.clone(),
        slots: line.max_jobs,
        speed_factor: line.speed_factor,
        speed: known.map_or(line.speed_factor, |machine| machine.speed),
        mb_per_s: known.map_or(DEFAULT_MB_PER_S, |machine| machine.mb_per_s),
        systems: line.systems.clone(),
        features: line.supported_features.clone(),
        mandatory_features: line.mandatory_features.clone(),
    }
}

/// Loads the policies. This process enters the sandbox first.
fn policies(context: &Context, args: &Args) -> Result<Vec<(String, PolicyHere)>, CliError> {
    let names: Vec<&str> = if args.policy.is_empty() {
        vec![DEFAULT_POLICY]
    } else {
        args.policy.iter().map(String::as_str).collect()
    };
    let failed =
        |message: String| CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) };
    let host = Host::for_tests(Compiler::Contained(None));
    let mut ready = Vec::new();
    for name in names {
        let subject = Subject::find(
            name,
            &context.files(),
            &host,
            &Changes { set: &args.set, ..Changes::default() },
        )
        .map_err(subject_error)?;
        let plugin = testing::prepare(&subject, &host).map_err(failed)?;
        ready.push((name.to_owned(), subject, plugin));
    }
    testing::wall().raise().map_err(CliError::environment)?;
    ready
        .into_iter()
        .map(|(name, subject, plugin)| {
            Ok((name, PolicyHere::new(&subject, plugin, &context.dirs).map_err(failed)?))
        })
        .collect()
}

fn title(comparison: &Comparison, args: &Args) -> String {
    let Comparison { traces, derivations, machines, .. } = comparison;
    let slots: u32 = machines.iter().map(|machine| machine.slots).sum();
    let seeds = match args.generate {
        Some(Generated { seed, .. }) if *traces > 1 => {
            format!(
                ", {traces} traces (seeds {seed} to {})",
                seed.wrapping_add(u64::from(args.seeds) - 1)
            )
        }
        Some(Generated { seed, .. }) => format!(" (seed {seed})"),
        None => String::new(),
    };
    format!("{derivations} derivations on {} machines with {slots} slots{seeds}", machines.len())
}

fn text(comparison: &Comparison, args: &Args, colours: bool) -> String {
    let rows = |rows: Vec<Vec<String>>| {
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        output::table(&rows)
    };
    let strong = |text: &str| styled(text, Style::Strong, colours);
    let mut text =
        format!("{}\n\n{}", strong(&title(comparison, args)), rows(chart::table(comparison)));
    let first = if comparison.traces > 1 { " in the first trace" } else { "" };
    let _ = write!(
        text,
        "\n{}\n{}",
        strong(&format!("slots in use over time{first}")),
        rows(chart::busy_over_time(comparison))
    );
    let mut machines = chart::machines(comparison);
    let more = machines.len().saturating_sub(SHOWN_MACHINES + 1);
    machines.truncate(SHOWN_MACHINES + 1);
    let _ =
        write!(text, "\n{}\n{}", strong(&format!("use of each machine{first}")), rows(machines));
    if more > 0 {
        let _ = writeln!(text, "{more} more machines: --format json");
    }
    for rule in &comparison.rules {
        if let Some(problem) = &rule.problem {
            let line = format!(
                "{} gave no answer ({problem}); Nix's own rule was used instead",
                rule.name
            );
            let _ = writeln!(text, "\n{}", styled(&printable(&line), Style::Bad, colours));
        }
        if rule.never > 0 {
            let _ = writeln!(
                text,
                "{}: {} derivations fit on no machine, or depend on such derivations",
                printable(&rule.name),
                rule.never
            );
        }
    }
    text
}

fn create(path: &Path) -> Result<File, CliError> {
    File::create(path).map_err(|error| unwritable(path, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> CliError {
    CliError::environment(
        anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
    )
}

fn unwritable(path: &Path, error: std::io::Error) -> CliError {
    CliError::environment(
        anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
    )
}
