//! `hookrun builders trace`: exports recorded or generated builds in the format that `simulate`
//! reads.

use super::super::{CliError, Context, output};
use super::fleet::{MachineList, Machines};
use super::measured;
use hookrun_builders::history::{BuildRow, RowSelection};
use hookrun_nix::database::Database;
use hookrun_nix::derivation::MAX_SIZE;
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::terminal::printable_json;
use hookrun_simulate::export::{FromNix, export};
use hookrun_simulate::generate::{Fleet, generate};
use hookrun_simulate::trace::Trace;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hookrun builders trace > trace.jsonl                     the newest 5,000 recorded builds
  hookrun builders trace --generate 1,500,four > trace.jsonl
  hookrun builders simulate --trace trace.jsonl

The format is described in docs/build-traces.md.")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    machines: Machines,
    /// Export the newest N builds
    #[arg(long, value_name = "N", default_value_t = measured::LOOKED_AT)]
    last: u32,
    /// Generate random builds that resemble packages instead: seed, number of derivations, fleet
    /// (`four` or `fifty` machines)
    #[arg(long, value_name = "SEED,NODES,FLEET", conflicts_with_all = ["machines", "last"])]
    generate: Option<Generated>,
}

/// The value of `--generate`, such as `1,500,four`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generated {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) fleet: Fleet,
}

/// The maximum number of generated derivations; Nixpkgs has a tenth of that.
const MAX_NODES: usize = 1 << 20;

impl std::str::FromStr for Generated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let (Some(seed), Some(nodes), Some(fleet), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("three parts are needed, such as `1,500,four`".to_owned());
        };
        let seed = seed.parse().map_err(|_| format!("seed `{seed}` is not a whole number"))?;
        let nodes = nodes.parse().ok().filter(|nodes| (1..=MAX_NODES).contains(nodes));
        let nodes = nodes.ok_or_else(|| {
            format!("the number of derivations is a whole number from 1 to {MAX_NODES}")
        })?;
        let known = Fleet::ALL.into_iter().find(|known| known.as_str() == fleet);
        let names = Fleet::ALL.map(Fleet::as_str).join("` or `");
        let fleet =
            known.ok_or_else(|| format!("fleet `{fleet}` is not known; write `{names}`"))?;
        Ok(Self { seed, nodes, fleet })
    }
}

impl Generated {
    pub(super) fn trace(self) -> Trace {
        generate(self.seed, self.nodes, self.fleet)
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    match args.generate {
        Some(generated) => write(&generated.trace()),
        None => write(&recorded(context, args)?),
    }
}

fn recorded(context: &Context, args: &Args) -> Result<Trace, CliError> {
    let MachineList { machines, .. } = MachineList::find(&args.machines)?;
    let Some(record) = measured::record(context)? else {
        let message = "no build is recorded yet; hookrun's build hook records them (see `hookrun doctor`), or use --generate 1,500,four";
        return Err(CliError { exit: Exit::Failed, source: anyhow::Error::msg(message) });
    };
    let builds = record.builds(RowSelection::Last(args.last)).map_err(CliError::environment)?;
    let health = record.machines().map_err(CliError::environment)?;
    Ok(export(&builds, &machines, &health, &from_nix(&builds)))
}

/// Returns references and sizes of the derivations that still exist.
fn from_nix(builds: &[BuildRow]) -> FromNix {
    let mut found = FromNix::default();
    let Ok(database) = Database::open(&NixDirs::from_env()) else { return found };
    for build in builds {
        if found.references.contains_key(&build.drv_path) {
            continue;
        }
        if let Ok(Some(Some(info))) = database
            .path_infos(std::slice::from_ref(&build.drv_path))
            .map(|infos| infos.into_iter().next())
        {
            found.references.insert(build.drv_path.clone(), info.references);
        }
        let outputs = hookrun_nix::outputs_of(&NixDirs::from_env(), &build.drv_path, MAX_SIZE)
            .unwrap_or_default();
        let paths: Vec<String> = outputs.into_iter().map(|output| output.path).collect();
        let sizes = database.path_infos(&paths).unwrap_or_default();
        let bytes = sizes.into_iter().flatten().map(|info| info.nar_size).sum();
        found.output_bytes.insert(build.drv_path.clone(), bytes);
    }
    found
}

fn write(trace: &Trace) -> Result<Exit, CliError> {
    let mut lines = Vec::new();
    trace.write(&mut lines)?;
    let text = String::from_utf8(lines).map_err(CliError::internal)?;
    output::print(&printable_json(&text))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_machines_derivations_and_builds() {
        assert_eq!("7,500,four".parse(), Ok(Generated { seed: 7, nodes: 500, fleet: Fleet::Four }));
        let errors: Vec<String> = ["", "1,2", "x,2,four", "1,0,four", "1,2,six", "1,2,four,3"]
            .map(|text| text.parse::<Generated>().unwrap_err())
            .into();
        insta::assert_snapshot!(errors.join("\n"));
    }
}
