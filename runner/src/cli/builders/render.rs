//! `hookrun builders render`: writes a machines file for a Nix that does not call hookrun's build
//! hook.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::super::output;
use super::super::{CliError, Context};
use super::fleet::{MachineList, Machines};
use hookrun_builders::history::render::{Knowledge, render};
use hookrun_nix::exit_code::Exit;

/// The mode of the file before the umask is applied. Every user's Nix may read it.
const MODE: u32 = 0o666;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
For Lix 2.94 and later, and for Nix 2.25 to 2.33 where `build-hook` cannot be set: writes what
hookrun knows into a file that Nix's own rule reads. Machines that failed recently become comments,
the fastest come first, and speed factors are measured where enough builds are recorded. They are
whole numbers for a Nix that takes no others. Run it from a timer, every few minutes.

Examples:
  hookrun builders render --machines /etc/nix/machines.all --output /etc/nix/machines
  hookrun builders render | less")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    machines: Machines,
    /// Write to this file, atomically [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write speed factors as whole numbers, even if the installed Nix accepts fractions
    #[arg(long)]
    whole_speed_factors: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let MachineList { nix, machines } = MachineList::find(&args.machines)?.some()?;
    if let (Some(from), Some(to)) = (&args.machines.machines, &args.output)
        && std::fs::canonicalize(from).ok() == std::fs::canonicalize(to).ok()
    {
        return Err(CliError::usage(
            "--output and --machines name the same file, and omitted machines would be lost; use two files",
        ));
    }
    let knowledge = super::measured::knowledge(context)?;
    let whole = args.whole_speed_factors || nix.whole_speed_factors();
    let text = render(&machines, &knowledge, whole);
    match &args.output {
        Some(path) => write(path, &text)?,
        None => output::print(&text)?,
    }
    let out = machines
        .iter()
        .filter(|line| {
            knowledge.get(line.uri.as_str()).is_some_and(|known: &Knowledge| known.out.is_some())
        })
        .count();
    if out > 0 {
        eprintln!("{out} of {} machines are omitted", machines.len());
    }
    Ok(Exit::Done)
}

/// Replaces the file atomically, because Nix may read it at any time.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        CliError::environment(
            anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
        )
    };
    // The temporary name cannot be guessed, and the mode is that of any new file.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let written = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(MODE))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        });
    written.map(drop).map_err(failed)
}
