//! The machines for all commands of `hookrun builders`: those in the setting `builders` of Nix, or
//! those in a file.

use std::path::{Path, PathBuf};

use super::super::CliError;
use super::super::output::{self, Format, printable};
use hookrun_nix::installed::Installed;
use hookrun_nix::machines::{self, MachineLine};

/// `--machines`.
#[derive(Debug, clap::Args)]
pub(super) struct Machines {
    /// Read this machines file instead of the machines in Nix's setting `builders`
    #[arg(long, value_name = "FILE")]
    pub(super) machines: Option<PathBuf>,
}

/// The machines, and the Nix that uses them.
pub(super) struct MachineList {
    pub(super) nix: Installed,
    pub(super) machines: Vec<MachineLine>,
}

impl MachineList {
    /// Asks Nix, and reads the file if one is named. Reports lines that cannot be read on standard
    /// error.
    pub(super) fn find(args: &Machines) -> Result<Self, CliError> {
        let nix = Installed::find().map_err(CliError::environment)?;
        let builders = match &args.machines {
            Some(path) => read(path)?,
            None => nix.setting("builders").as_bytes().to_vec(),
        };
        let found = machines::parse_as(&builders, nix.setting("system"), || {
            Some((nix.flavour, nix.version))
        });
        for warning in &found.warnings {
            eprintln!("warning: {}", printable(warning));
        }
        Ok(Self { nix, machines: found.machines })
    }

    /// Like [`MachineList::some`], but prints an empty list first for a program that reads JSON.
    pub(super) fn some_or_empty_json(self, format: Format) -> Result<Self, CliError> {
        if format == Format::Json && self.machines.is_empty() {
            output::json(&[(); 0])?;
        }
        self.some()
    }

    /// Returns an error if there are no machines.
    pub(super) fn some(self) -> Result<Self, CliError> {
        if self.machines.is_empty() {
            let message = "there are no machines: the setting `builders` of Nix names none; write them into /etc/nix/machines, one per line, or name a file with --machines FILE";
            return Err(CliError::environment(anyhow::Error::msg(message)));
        }
        Ok(self)
    }
}

/// Reads a file that the user names.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|error| {
        CliError::environment(
            anyhow::Error::new(error).context(format!("cannot read {}", path.display())),
        )
    })
}
