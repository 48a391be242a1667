//! `hookrun doctor`: checks whether the installed Nix calls hookrun, and whether hookrun works.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::{self, Format, Style, printable, styled};
use super::{CliError, Context};
use crate::doctor::{Finding, Level, examine, facts};
use hookrun_nix::exit_code::Exit;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examines the Nix found in PATH and the quirks of its version, the settings that make it call
hookrun, users, groups and permissions, the modes of secret files, the sandbox and the worker.
Changes nothing and builds nothing. Run it as root to check the settings of the daemon. `hookrun
check` checks the configuration with its plugins, keys and stores, and `hookrun builders check`
checks machines.

Exit code 0: no problems were found. 1: there are problems, each with the line to write. 4: Nix is
not installed.

Example:
  sudo hookrun doctor")]
pub(super) struct Args {
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct DoctorReport {
    findings: Vec<Finding>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let facts = facts(&context.dirs);
    let findings = examine(&facts);
    let exit = if facts.nix.is_err() {
        Exit::Environment
    } else if findings.iter().any(|finding| finding.level == Level::Problem) {
        Exit::Failed
    } else {
        Exit::Done
    };
    match args.format {
        Format::Json => output::json(&DoctorReport { findings })?,
        Format::Text => output::print(&text(&findings, output::colours()))?,
    }
    Ok(exit)
}

fn text(findings: &[Finding], colours: bool) -> String {
    let mut text = String::new();
    for Finding { level, about, text: words } in findings {
        let (word, style) = match level {
            Level::Good => ("ok", Style::Good),
            Level::Note => ("note", Style::Warning),
            Level::Problem => ("wrong", Style::Bad),
        };
        let _ = writeln!(
            text,
            "{}  {about}: {}",
            styled(&format!("{word:<5}"), style, colours),
            printable(words)
        );
    }
    let wrong = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    let verdict = match wrong {
        0 => styled("no problems found", Style::Good, colours),
        1 => styled("1 problem found", Style::Bad, colours),
        count => styled(&format!("{count} problems found"), Style::Bad, colours),
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}
