//! Step 4: there are two builders, one faster than the other. The policy plugin chooses one, and
//! Nix's own `build-remote` builds there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::demo::StepResult;
use crate::demo::private_nix::PrivateNix;
use crate::demo::stage::{Stage, ended};
use hookrun_builders::history::{Record, RowSelection};
use hookrun_system::process::describe_end;

/// Builds on one of two stores that represent machines, and checks which of them has the path.
pub(super) fn run(stage: &mut Stage) -> Result<StepResult> {
    if let Some(why) = impossible() {
        return Ok(StepResult::Impossible(why));
    }
    let machines = [("slow", 1.0), ("fast", 4.0)]
        .map(|(name, speed_factor)| (stage.path("builders").join(name), speed_factor));
    std::fs::create_dir_all(stage.path("builders"))
        .context("cannot create the builders' directory")?;
    let lines = machines
        .each_ref()
        .map(|(store, speed_factor)| PrivateNix::local_machine(store, 1, *speed_factor));
    // Hooks do not compile plugins. The worker of a service would have compiled the policy already;
    // here the command does it.
    stage.hookrun(&["compile"])?;
    // `--max-jobs 0` prevents a local build.
    let said = stage.build("parcel", &["--max-jobs", "0", "--builders", &lines.join(" ; ")])?;
    if !said.status.success() {
        return Ok(StepResult::Broken(format!("`nix-build` {}", ended(said.status))));
    }
    let path = Path::new(said.stdout.lines().last().unwrap_or_default());
    let [slow, fast] = machines.map(|(store, _)| PrivateNix::path_in_store(&store, path).exists());
    if !fast || slow {
        return Ok(StepResult::Broken(format!(
            "built on the fast machine: {fast}; on the slow one: {slow}"
        )));
    }
    let record = Record::read(&stage.path("state/builders"))
        .context("cannot read the recorded decisions")?;
    let decided = record
        .map(|record| record.decisions(RowSelection::Last(1)))
        .transpose()
        .context("cannot read the recorded decisions")?;
    match decided.as_deref().and_then(<[_]>::first) {
        Some(decision) if decision.decided_by == "policy" => Ok(StepResult::Works(
            "built on the machine with speed factor 4, as the policy chose, and copied back".into(),
        )),
        Some(decision) => Ok(StepResult::Broken(format!(
            "the decision was made by {}, not by the policy",
            decision.decided_by
        ))),
        None => Ok(StepResult::Broken(
            "Nix did not call hookrun and chose the machine itself; run `hookrun doctor`"
                .to_owned(),
        )),
    }
}

/// Returns why this step is not possible here.
fn impossible() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some(
            "the two machines are second stores on this host, for which Nix builds in a chroot, and that needs root; run the demo as root"
                .into(),
        );
    }
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "the two machines are second stores on this host, for which Nix builds in a chroot, and that needs mount namespaces \
             (`unshare --mount` {}); in a container, allow them (CAP_SYS_ADMIN, for example `docker run --privileged`)",
            describe_end(output.status, &String::from_utf8_lossy(&output.stderr))
        )),
        Err(error) => Some(format!(
            "`unshare` cannot be started ({error}), so mount namespaces cannot be tested; install util-linux"
        )),
    }
}
