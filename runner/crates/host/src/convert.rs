//! Converts events to the records of the interfaces, and answers of guests back. Every field is
//! named, so that a new one cannot be forgotten.

use super::bindings::exports::hookrun::{builder_selection, diff, post_build};
use hookrun_nix::caller::Caller;
use hookrun_nix::event::{self, Event, Output};
use hookrun_nix::evidence::{Difference, Evidence};
use hookrun_nix::outcome::Outcome;
use hookrun_nix::selection::{
    Action, Candidate, Decision, LocalMachine, Machine, PastBuilds, PolicyError,
};

use builder_selection::builder_selection as selection;
use diff::diff as wit_diff;
use post_build::post_build as wit_build;

pub(super) fn post_build(
    event: &Event,
    build: &event::PostBuild,
    attempt: u32,
) -> wit_build::Event {
    let event::PostBuild { drv_path, outputs } = build;
    wit_build::Event {
        id: event.id.clone(),
        time_ms: event.time_ms,
        host: event.host.clone(),
        store_dir: event.nix.store.to_string_lossy().into_owned(),
        drv_path: drv_path.clone(),
        name: event.name().to_owned(),
        outputs: outputs
            .iter()
            .map(|Output { name, path }| wit_build::Output {
                name: name.clone(),
                path: path.clone(),
            })
            .collect(),
        attempt,
        details: Vec::new(),
    }
}

pub(super) fn diff(event: &Event, diff: &event::Diff, attempt: u32) -> wit_diff::Event {
    let event::Diff { drv_path, output, previous, current, evidence } = diff;
    let Evidence { differences, incomplete, compared_files, compared_bytes } = evidence;
    wit_diff::Event {
        id: event.id.clone(),
        time_ms: event.time_ms,
        host: event.host.clone(),
        store_dir: event.nix.store.to_string_lossy().into_owned(),
        drv_path: drv_path.clone(),
        name: event.name().to_owned(),
        output_name: output.name.clone(),
        previous_path: previous.clone(),
        current_path: current.clone(),
        differences: differences.iter().map(difference).collect(),
        complete: incomplete.is_none(),
        compared_files: *compared_files,
        compared_bytes: *compared_bytes,
        attempt,
        details: diff_details(event.caller.as_ref(), incomplete.as_deref()),
    }
}

/// Returns the details of a diff event under the names that `diff.wit` defines.
fn diff_details(caller: Option<&Caller>, incomplete: Option<&str>) -> Vec<(String, String)> {
    let Caller { user, command, nix } = caller.cloned().unwrap_or_default();
    let details = [
        ("incomplete", incomplete.map(str::to_owned)),
        ("user", user),
        ("command", command),
        ("nix-version", nix),
    ];
    details.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn difference(difference: &Difference) -> wit_diff::Difference {
    let Difference { path, kind, previous, current, offset, details } = difference.clone();
    wit_diff::Difference { path, kind, previous, current, offset, details }
}

pub(super) fn candidate(candidate: &Candidate) -> selection::Candidate {
    let Candidate {
        drv_path,
        name,
        pname,
        version,
        system,
        required_features,
        builtin,
        fixed_output,
        prefer_local,
        hints,
        expected_seconds,
        input_bytes,
        dependents_depth,
        details,
    } = candidate.clone();
    selection::Candidate {
        drv_path,
        name,
        pname,
        version,
        system,
        required_features,
        builtin,
        fixed_output,
        prefer_local,
        hints,
        expected_seconds,
        input_bytes,
        dependents_depth,
        details,
    }
}

pub(super) fn machine(machine: &Machine) -> selection::Machine {
    let Machine {
        uri,
        slots,
        load,
        speed_factor,
        supported_features,
        mandatory_features,
        healthy,
        connect_ms,
        past: past_builds,
        busy_seconds,
        missing_bytes,
        bytes_per_second,
        details,
    } = machine.clone();
    selection::Machine {
        uri: uri.clone(),
        slots,
        load,
        speed_factor,
        supported_features: supported_features.clone(),
        mandatory_features: mandatory_features.clone(),
        healthy,
        connect_ms,
        past: past_builds.map(past),
        busy_seconds,
        missing_bytes,
        bytes_per_second,
        details,
    }
}

pub(super) fn local(local: &LocalMachine) -> selection::LocalMachine {
    let LocalMachine {
        able,
        willing,
        slots,
        speed_factor,
        past: past_builds,
        waiting,
        running,
        whole_speed_factors,
        details,
    } = local.clone();
    let past = past_builds.map(past);
    selection::LocalMachine {
        able,
        willing,
        slots,
        speed_factor,
        past,
        waiting,
        running,
        whole_speed_factors,
        details,
    }
}

fn past(PastBuilds { count, median_seconds }: PastBuilds) -> selection::PastBuilds {
    selection::PastBuilds { count, median_seconds }
}

pub(super) fn decision(decision: selection::Decision) -> Result<Decision, PolicyError> {
    let selection::Decision { action, machines, reason, ask_again_ms } = decision;
    Ok(Decision { action: Action::from_word(&action, machines)?, reason, ask_again_ms })
}

/// The answer of a hook. Its two records are the same in both packages.
pub(super) trait IntoOutcome {
    /// Converts the answer to an outcome.
    fn outcome(self) -> Outcome;
}

macro_rules! answer {
    ($($wit:ident),+) => {$(
        impl IntoOutcome for Result<$wit::Outcome, $wit::Failure> {
            fn outcome(self) -> Outcome {
                match self {
                    Ok($wit::Outcome { message, details }) => Outcome::Done { message, details },
                    Err($wit::Failure { message, transient, retry_after_ms }) => {
                        Outcome::Failed { message, transient, retry_after_ms }
                    }
                }
            }
        }
    )+};
}
answer!(wit_build, wit_diff);

impl IntoOutcome for Result<selection::Decision, String> {
    fn outcome(self) -> Outcome {
        match self {
            Ok(selection::Decision { action, machines, reason, ask_again_ms: _ }) => {
                let machines = machines.into_iter().map(|uri| ("machine".to_owned(), uri));
                Outcome::Done {
                    message: reason,
                    details: [("action".to_owned(), action)].into_iter().chain(machines).collect(),
                }
            }
            Err(message) => Outcome::Failed { message, transient: false, retry_after_ms: None },
        }
    }
}
