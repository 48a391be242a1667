//! `hookrun builders check`: builds a small derivation on each machine.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::super::output::{self, Format, Style, printable, styled};
use super::super::{CliError, Context};
use super::fleet::{MachineList, Machines};
use hookrun_builders::probe::findings::{MachineFinding, examine};
use hookrun_builders::probe::{ProbeResult, Prober, TestBuild};
use hookrun_builders::slots::reservations;
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connects to every machine, asks for its systems and features, and runs a small build for each system
in its line, with all features in its line, through Nix's own build hook. All machines are checked
at the same time, each step within --timeout. Run it as the user that runs nix-daemon (root),
because that user's keys and known hosts are used. The resources of the configuration are compared
with the machines as well. The outputs stay in both stores until the next garbage collection.

Exit code 0: all machines can build. 1: a machine cannot; the output contains the line to write and
its file. 4: there is no Nix, or no machine.

Example:
  sudo hookrun builders check")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    machines: Machines,
    /// The time limit of one step with one machine, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One machine, as `--format json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CheckedMachine {
    machine: String,
    /// The time to connect, including the start of a Nix process; none if the machine cannot be
    /// reached.
    connect_ms: Option<u64>,
    /// The machine's version of Nix, if it reports one.
    nix_version: Option<String>,
    /// Whether the machine trusts this user, if it reports that.
    trusted: Option<bool>,
    /// The system type that the machine reports.
    system: Option<String>,
    features: Vec<String>,
    /// One build for each system in the machines file.
    builds: Vec<Build>,
    findings: Vec<MachineFinding>,
}

/// A test build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Build {
    system: String,
    features: Vec<String>,
    /// The duration; none if the build failed, and `findings` contains the reason.
    duration_ms: Option<u64>,
}

impl CheckedMachine {
    fn new(seen: ProbeResult, findings: Vec<MachineFinding>) -> Self {
        let reached = seen.reached.ok();
        let (system, features) = seen.is.map(|is| (is.system, is.features)).unzip();
        let build = |tried: TestBuild| Build {
            system: tried.system,
            features: tried.features,
            duration_ms: tried.result.ok(),
        };
        Self {
            machine: seen.machine,
            connect_ms: reached.as_ref().map(|reached| reached.ms),
            nix_version: reached.as_ref().and_then(|reached| reached.version.clone()),
            trusted: reached.and_then(|reached| reached.trusted),
            system,
            features: features.unwrap_or_default(),
            builds: seen.builds.into_iter().map(build).collect(),
            findings,
        }
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let MachineList { nix, machines } =
        MachineList::find(&args.machines)?.some_or_empty_json(args.format)?;
    let limits = context.config()?.builders.resources;
    let mut useless = reservations::useless(&limits, &machines);
    let prober = Prober {
        nix: &nix,
        limit: Duration::from_secs(args.timeout),
        nonce: uuid::Uuid::now_v7().to_string(),
    };
    let user = uzers::get_current_username()
        .map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
    let checked: Vec<CheckedMachine> = prober
        .all(&machines)
        .into_iter()
        .map(|seen| {
            let mut findings = examine(&seen, &user);
            let of_it =
                useless.extract_if(.., |(machine, _)| machine.as_ref() == Some(&seen.machine));
            findings.extend(of_it.map(|(_, text)| MachineFinding { problem: true, text }));
            CheckedMachine::new(seen, findings)
        })
        .collect();
    match args.format {
        Format::Json => output::json(&checked)?,
        Format::Text => output::print(&text(&checked, output::colours()))?,
    }
    for (_, text) in &useless {
        eprintln!("warning: {}", printable(text));
    }
    let bad = !useless.is_empty()
        || checked.iter().any(|machine| machine.findings.iter().any(|finding| finding.problem));
    Ok(if bad { Exit::Failed } else { Exit::Done })
}

fn text(checked: &[CheckedMachine], colours: bool) -> String {
    let mut text = String::new();
    for CheckedMachine { machine, findings, .. } in checked {
        let bad = findings.iter().any(|finding| finding.problem);
        let (word, style) = if bad { ("wrong", Style::Bad) } else { ("ok   ", Style::Good) };
        let _ = writeln!(text, "{}  {}", styled(word, style, colours), printable(machine));
        for MachineFinding { problem, text: words } in findings {
            let mark = if *problem {
                styled("!", Style::Bad, colours)
            } else {
                styled("-", Style::Faint, colours)
            };
            let _ = writeln!(text, "       {mark} {}", printable(words));
        }
    }
    text
}
