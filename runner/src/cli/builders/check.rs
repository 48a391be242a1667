//! `hookrun builders check`: can each machine really build for us?

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::super::output::{self, Format, Style, printable, styled};
use super::super::{CliError, Context};
use super::fleet::{Listed, Machines};
use crate::builders::probe::findings::{Finding, examine};
use crate::builders::probe::{Prober, Seen};
use crate::builders::resources;
use crate::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connects to every machine, asks what it is, and has it build something tiny for each system that its line claims, with all features that it
claims, by Nix's own build hook. All machines at once, each step within --timeout. Run it as the user that runs nix-daemon (root), whose keys
and known hosts count. Looks too whether the resources that the configuration counts fit the machines. What was built stays in both stores until the next garbage collection.

Exit code 0: all can build. 1: one cannot, each with the line to write, and where. 4: there is no Nix, or no machine.")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    machines: Machines,
    /// The most that one step with one machine takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    seen: Seen,
    findings: Vec<Finding>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Listed { nix, machines } = Listed::find(&args.machines)?.some()?;
    let limits = context.config()?.builders.resources;
    let mut useless = resources::useless(&limits, &machines);
    let prober = Prober {
        nix: &nix,
        limit: Duration::from_secs(args.timeout),
        nonce: uuid::Uuid::now_v7().to_string(),
    };
    let user = uzers::get_current_username()
        .map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
    let checked: Vec<Checked> = prober
        .all(&machines)
        .into_iter()
        .map(|seen| {
            let mut findings = examine(&seen, &user);
            let of_it =
                useless.extract_if(.., |(machine, _)| machine.as_ref() == Some(&seen.machine));
            findings.extend(of_it.map(|(_, text)| Finding { problem: true, text }));
            Checked { seen, findings }
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

fn text(checked: &[Checked], colours: bool) -> String {
    let mut text = String::new();
    for Checked { seen, findings } in checked {
        let bad = findings.iter().any(|finding| finding.problem);
        let (word, style) = if bad { ("wrong", Style::Bad) } else { ("ok   ", Style::Good) };
        let _ = writeln!(text, "{}  {}", styled(word, style, colours), printable(&seen.machine));
        for Finding { problem, text: words } in findings {
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
