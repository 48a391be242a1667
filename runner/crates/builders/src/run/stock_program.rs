//! Finds the program of Nix's own build hook, which belongs to the Nix that called.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hookrun_nix::bounded;
use hookrun_nix::installed::{Flavour, Version, identify};
use hookrun_system::process;

/// The time limit of `nix --version`. It takes 25 ms, and the whole command waits for it.
const VERSION_PATIENCE: Duration = Duration::from_secs(2);

/// The names of the binary that is also `build-remote`. Other programs (nix-eval-jobs, Hydra) only
/// use Nix's library.
const NIX_PROGRAMS: [&str; 13] = [
    "nix",
    "nix-build",
    "nix-channel",
    "nix-collect-garbage",
    "nix-copy-closure",
    "nix-daemon",
    "nix-env",
    "nix-hash",
    "nix-instantiate",
    "nix-prefetch-url",
    "nix-shell",
    "nix-store",
    "build-remote",
];

/// The program of the stock hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StockProgram {
    program: PathBuf,
    name: &'static str,
    arguments: Vec<String>,
}

impl StockProgram {
    /// Returns the program of the Nix that called this process, or else of the `nix` in `PATH`.
    pub(crate) fn of_caller(verbosity: u64) -> Self {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        let is_nix = |pid: &i32| {
            let target = process::program_of(*pid)?;
            // The name of a Nix that was upgraded while it runs has this suffix.
            let name = target.file_name()?.to_str()?.trim_end_matches(process::DELETED).to_owned();
            NIX_PROGRAMS.contains(&name.as_str()).then_some(())
        };
        // Since 2.0 the binary acts as the program that argv[0] names.
        let as_build_remote = |program| Self {
            program,
            name: "build-remote",
            arguments: vec![verbosity.to_string()],
        };
        if let Some(parent) = parent.filter(|parent| is_nix(parent).is_some()) {
            return as_build_remote(process::image_of(parent));
        }
        match nix_in_path() {
            Some(program) if !is_script(&program) => as_build_remote(program),
            // A wrapper script loses argv[0]; `__build-remote` exists since 2.10.
            program => {
                let arguments = vec!["__build-remote".to_owned(), verbosity.to_string()];
                Self {
                    program: program.unwrap_or_else(|| PathBuf::from("nix")),
                    name: "nix",
                    arguments,
                }
            }
        }
    }

    /// Returns the command that starts it.
    pub(crate) fn command(&self) -> Command {
        let Self { program, name, arguments } = self;
        let mut command = Command::new(program);
        std::os::unix::process::CommandExt::arg0(&mut command, name).args(arguments);
        command
    }

    /// Returns the version of its Nix, if it prints one in time.
    pub(crate) fn version(&self) -> Option<(Flavour, Version)> {
        let mut command = Command::new(&self.program);
        std::os::unix::process::CommandExt::arg0(&mut command, "nix").arg("--version");
        let said = bounded::run(&mut command, VERSION_PATIENCE).ok()?;
        said.status.success().then(|| identify(said.stdout.trim())).flatten()
    }

    /// Returns any program, for tests.
    #[cfg(test)]
    pub(crate) fn other(program: &str, arguments: &[&str]) -> Self {
        Self {
            program: program.into(),
            name: "sh",
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        }
    }
}

fn nix_in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let executable = |program: &PathBuf| {
        program.is_file()
            && rustix::fs::access(program.as_path(), rustix::fs::Access::EXEC_OK).is_ok()
    };
    std::env::split_paths(&path).map(|directory| directory.join("nix")).find(executable)
}

fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(program).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && start == *b"#!"
}
