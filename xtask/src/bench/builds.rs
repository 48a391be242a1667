//! Whole builds: `nix-build` of many trivial derivations without a hook, with a hook that does
//! nothing, with hookrun, and with hookrun and a worker that uploads meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::from_nix::Nix;
use super::queue::Daemon;
use super::table::{Figures, Of, Table, WARM_UP, time};

/// Trivial derivations in one build.
const DERIVATIONS: usize = 50;
/// With hookrun, against a build without a hook.
const AIM_HOOK: f64 = 1.45;
/// The same with a worker that uploads.
const AIM_WORKER: f64 = 1.6;

const BUILD: &str = r#"{ run, count }:
let leaf = number: derivation {
  name = "trivial-${run}-${toString number}"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "echo ${run} ${toString number} > $out" ];
};
in builtins.genList leaf count
"#;

/// Adds rows about whole builds; everything is made in a directory below `parent`.
pub(super) fn compare(table: &mut Table, program: &Path, parent: &Path, runs: usize) -> Result<()> {
    let nix = Nix::make(parent, "builds")?;
    std::fs::write(nix.directory.join("many.nix"), BUILD)?;
    let hook = program.with_file_name("hookrun-hook");
    let hook = nix.link(&hook, "hookrun-post-build")?.display().to_string();
    let nothing = nix.script("nothing", "exit 0")?.display().to_string();
    std::fs::create_dir_all(nix.directory.join("cache"))?;
    std::fs::write(
        nix.directory.join("hookrun.toml"),
        format!(
            "{}[plugins.cache]\nsource = \"bundled:s3-upload\"\nhooks = [\"post-build\"]\n\
             config = {{ bucket = \"cache\", allow-unsigned = true }}\n\
             grant = {{ nix-store = \"closure\", object-store = [\"cache\"] }}\n\
             [object-stores.cache]\nurl = \"file://{}\"\n",
            super::THIN,
            nix.directory.join("cache").display()
        ),
    )?;
    let mut compile = nix.command(&program.display().to_string());
    time("hookrun compile", compile.arg("compile"))?;
    let kinds = [("without", None), ("nothing", Some(&nothing)), ("hookrun", Some(&hook))];
    let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for run in 0..WARM_UP + runs {
        let mut taken = kinds
            .iter()
            .map(|(kind, hook)| build(&nix, &format!("{kind}-{run}"), hook.map(String::as_str)))
            .collect::<Result<Vec<Duration>>>()?;
        let mut daemon = nix.command(&program.display().to_string());
        daemon.arg("daemon");
        let worker = Daemon::of(daemon, &nix.directory)?;
        taken.push(build(&nix, &format!("worker-{run}"), Some(&hook))?);
        drop(worker);
        if run >= WARM_UP {
            times.iter_mut().zip(taken).for_each(|(times, time)| times.push(time));
        }
    }
    let [without, nothing, hookrun, worker] = times.map(Figures::of);
    let name = format!("nix-build of {DERIVATIONS}");
    for (kind, figures, aim) in [
        ("a hook of `exit 0`", &nothing, None),
        ("hookrun, no worker", &hookrun, Some(AIM_HOOK)),
        ("hookrun, a worker uploads", &worker, Some(AIM_WORKER)),
    ] {
        table.add(Of::Median, (&format!("{name}, {kind}"), figures), ("no hook", &without), aim);
    }
    Ok(())
}

/// Builds derivations that were not built before.
fn build(nix: &Nix, run: &str, hook: Option<&str>) -> Result<Duration> {
    let mut command = nix.command("nix-build");
    command.arg(nix.directory.join("many.nix")).args(["--no-out-link", "-j", "2"]);
    command.args(["--argstr", "run", run, "--arg", "count", &DERIVATIONS.to_string()]);
    if let Some(hook) = hook {
        command.args(["--option", "post-build-hook", hook]);
    }
    time("nix-build", &mut command)
}
