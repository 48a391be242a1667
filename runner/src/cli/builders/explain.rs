//! `hookrun builders explain`: explains why a machine was chosen, and the others were not.

use std::fmt::Write as _;

use super::super::output::{self, Format, Style, printable, styled};
use super::super::{CliError, Context};
use super::measured::{self, in_style};
use hookrun_builders::history::{BuildRow, ConsideredMachine, DecisionRow, RowSelection};
use hookrun_nix::exit_code::Exit;

/// The index of the column after which the bytes to send are shown.
const TO_SEND_AFTER: usize = 3;
/// The number of decisions that are searched for a name.
const SEARCHED: u32 = 2000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun builders explain last
  hookrun builders explain /nix/store/...-hello-2.12.drv
  hookrun builders explain hello

Exit code 1: no decision about it is recorded.")]
pub(in crate::cli) struct Args {
    /// The store path of a derivation, its name or the beginning of its name, or `last`
    #[arg(value_name = "DRV")]
    derivation: String,
    /// The output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A decision and its builds, as `--format json` prints them; `decision` is none if none is
/// recorded.
#[derive(Debug, Default, serde::Serialize)]
struct Explained {
    decision: Option<DecisionRow>,
    builds: Vec<BuildRow>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let explained = find(context, &args.derivation)?;
    match (&explained, args.format) {
        (_, Format::Json) => output::json(&in_style(&explained)?)?,
        (Explained { decision: Some(decision), builds }, Format::Text) => {
            output::print(&text(decision, builds, output::colours()))?;
        }
        (Explained { decision: None, .. }, Format::Text) => {}
    }
    if explained.decision.is_some() {
        return Ok(Exit::Done);
    }
    Err(CliError {
        exit: Exit::Failed,
        source: anyhow::anyhow!(
            "no decision about `{}` is recorded; hookrun's build hook records them: run `hookrun doctor` to check that Nix calls it, then build something",
            args.derivation
        ),
    })
}

/// Returns the newest decision about `wanted`, and the builds that followed.
fn find(context: &Context, wanted: &str) -> Result<Explained, CliError> {
    let Some(record) = measured::record(context)? else { return Ok(Explained::default()) };
    let of = |selection| record.decisions(selection).map_err(CliError::environment);
    let decision = match wanted {
        "last" => of(RowSelection::Last(1))?.into_iter().next(),
        path if path.starts_with('/') => of(RowSelection::Derivation(path))?.into_iter().next(),
        name => of(RowSelection::Last(SEARCHED))?
            .into_iter()
            .find(|decision| decision.candidate.name.starts_with(name)),
    };
    let Some(decision) = decision else { return Ok(Explained::default()) };
    let mut builds = record
        .builds(RowSelection::Derivation(&decision.candidate.drv_path))
        .map_err(CliError::environment)?;
    builds.retain(|build| build.command == decision.command);
    Ok(Explained { decision: Some(decision), builds })
}

fn text(decision: &DecisionRow, builds: &[BuildRow], colours: bool) -> String {
    let DecisionRow {
        at_ms,
        candidate,
        command: _,
        local_willing,
        decided_by,
        action,
        reason,
        answer,
        machines,
    } = decision;
    let mut text = format!(
        "{}  {}\n",
        styled(&printable(&candidate.name), Style::Strong, colours),
        styled(&output::time(*at_ms), Style::Faint, colours)
    );
    let features = if candidate.required_features.is_empty() {
        "none".to_owned()
    } else {
        candidate.required_features.join(", ")
    };
    let mut known = vec![format!("system {}", candidate.system), format!("features {features}")];
    if let Some(expected) = candidate.expected_seconds {
        known.push(format!("expected to take {expected:.0} s at factor 1"));
    }
    if let Some(bytes) = candidate.input_bytes {
        known.push(format!("needs {}", output::bytes(bytes)));
    }
    if let Some(depth) = candidate.dependents_depth {
        known.push(format!("{depth} derivations in a chain wait for it"));
    }
    if !candidate.hints.is_empty() {
        let hints: Vec<String> =
            candidate.hints.iter().map(|(name, value)| format!("{name}={value}")).collect();
        known.push(format!("hints {}", hints.join(" ")));
    }
    known.push(format!("this machine had {} free slot", if *local_willing { "a" } else { "no" }));
    let _ = writeln!(text, "  {}", printable(&known.join("; ")));
    let _ = writeln!(text, "  {} decided: {action}, {}", printable(decided_by), printable(reason));
    let _ = writeln!(text, "  reply to Nix: {}", printable(answer));
    if !machines.is_empty() {
        let sent = machines.iter().any(|verdict| verdict.missing_bytes.is_some());
        let mut head = vec!["machine", "load", "factor", "rank", ""];
        if sent {
            head.insert(TO_SEND_AFTER, "to send");
        }
        let mut rows: Vec<Vec<String>> =
            vec![head.iter().map(|head| styled(head, Style::Faint, colours)).collect()];
        for ConsideredMachine {
            machine,
            slots,
            load,
            speed_factor,
            missing_bytes,
            rank,
            taken,
            reason,
        } in machines
        {
            let style = if *taken { Style::Good } else { Style::Plain };
            let mut row = vec![
                styled(&printable(machine), style, colours),
                format!("{load}/{slots}"),
                speed_factor.to_string(),
                rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string()),
                format!("{}{}", if *taken { "taken: " } else { "" }, printable(reason)),
            ];
            if sent {
                row.insert(
                    TO_SEND_AFTER,
                    missing_bytes.map_or_else(|| "-".to_owned(), output::bytes),
                );
            }
            rows.push(row);
        }
        text.push('\n');
        text.push_str(&output::table(&rows));
    }
    for build in builds {
        text.push('\n');
        let outcome =
            build.outcome.map_or("running, or its session was killed", |outcome| outcome.as_str());
        let _ = write!(
            text,
            "{} on {}",
            styled(outcome, Style::Strong, colours),
            printable(&build.machine)
        );
        for (what, ms) in [
            ("waited", build.waited_ms),
            ("took", build.seconds.and_then(|seconds| measured::whole_ms(seconds * 1000.0))),
        ] {
            if let Some(ms) = ms {
                let _ = write!(text, ", {what} {}", output::duration(ms));
            }
        }
        if let Some(detail) = &build.detail {
            let _ = write!(text, ": {}", printable(detail));
        }
        text.push('\n');
        for moved in &build.moves {
            let _ = writeln!(
                text,
                "  moved away from {}: {}",
                printable(&moved.machine),
                printable(&moved.why)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_builders::Candidate;
    use hookrun_builders::history::{BuildOutcome, Move};

    #[test]
    fn a_decision_lists_every_machine_with_its_reason() {
        let verdict = |machine: &str, rank, taken, reason: &str| ConsideredMachine {
            machine: machine.to_owned(),
            slots: 4,
            load: 1,
            speed_factor: 2.0,
            rank,
            taken,
            missing_bytes: None,
            reason: reason.to_owned(),
        };
        let decision = DecisionRow {
            at_ms: 0,
            candidate: Candidate {
                name: "hello-2.12".to_owned(),
                system: "x86_64-linux".to_owned(),
                expected_seconds: Some(42.0),
                input_bytes: Some(300 << 20),
                dependents_depth: Some(3),
                hints: vec![("seconds".to_owned(), "60".to_owned())],
                ..Candidate::default()
            },
            command: "1-2".to_owned(),
            local_willing: false,
            decided_by: "policy".to_owned(),
            action: "machines".to_owned(),
            reason: "should be done on ssh://b in 21 s".to_owned(),
            answer: "accept".to_owned(),
            machines: vec![
                verdict("ssh://a", None, false, "its features do not fit"),
                ConsideredMachine {
                    missing_bytes: Some(12 << 20),
                    ..verdict("ssh://b", Some(1), true, "the policy's first choice")
                },
            ],
        };
        let build = BuildRow {
            id: 1,
            drv_path: String::new(),
            name: "hello-2.12".to_owned(),
            pname: "hello".to_owned(),
            system: "x86_64-linux".to_owned(),
            required_features: Vec::new(),
            command: "1-2".to_owned(),
            machine: "ssh://b".to_owned(),
            speed_factor: 2.0,
            accepted_ms: 0,
            waited_ms: Some(1200),
            started_ms: None,
            ended_ms: Some(9),
            seconds: Some(20.5),
            outcome: Some(BuildOutcome::Built),
            detail: None,
            input_bytes: None,
            moves: vec![Move { machine: "ssh://c".to_owned(), why: "it was lost".to_owned() }],
        };
        let shown = text(&decision, &[build], false);
        let (_, rest) = shown.split_once('\n').unwrap();
        insta::assert_snapshot!(rest);
    }
}
