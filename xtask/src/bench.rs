//! `cargo xtask bench`: measures a release build on this machine. Most figures are ratios to a
//! yardstick that is measured in the same run.
//!
//! * the thin post-build hook (`hookrun-hook`) with its state on tmpfs against `sh -c true`: what
//!   hookrun adds to starting a process;
//! * the same on disk against `dd conv=fsync` of 1 KiB: what it adds to making one small file
//!   durable;
//! * a compiled gate plugin against `sh -c true`;
//! * the queue under load (`bench/queue.rs`), and hooks that real Nix calls at once
//!   (`bench/from_nix.rs`);
//! * whole builds with and without hookrun (`bench/builds.rs`);
//! * large paths in the diff hook and in uploads (`bench/paths.rs`);
//! * builds placed by the bundled policy against Nix's own rule, simulated
//!   (`bench/builders_sim.rs`).
//!
//! Except in `from_nix` and `builds`, this program calls the hook as Nix does, on a small
//! derivation that it writes.

mod builders_sim;
mod builds;
mod from_nix;
mod paths;
mod queue;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use self::table::Table;
use crate::machine::{self, Need};
use crate::process::{CommandExt as _, cargo, target_directory};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Runs of each command.
    #[arg(long, default_value_t = 300)]
    runs: usize,
    /// Where the state directory on disk is to be; by default in the target directory.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Events that the worker is to find.
    #[arg(long, default_value_t = 5000)]
    events: usize,
    /// A memory file system.
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// The program to measure, in place of a release build made now.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only this part.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Write the ratios into docs/performance.json, with which later runs are compared.
    #[arg(long)]
    record: bool,
    /// Generated traces of each kind, for `builders-sim`.
    #[arg(long, default_value_t = 20)]
    seeds: u16,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The hooks, against a shell and a disk.
    Hooks,
    /// The worker, and hooks at once.
    Queue,
    /// Whole builds of real Nix.
    Builds,
    /// Trees that differ, and the upload of a large path.
    Paths,
    /// The bundled policy in the simulator, against Nix's own rule.
    BuildersSim,
}

/// Runs of a command that takes seconds.
const LONG_RUNS: usize = 20;
/// The thin hook on tmpfs: at most this many times a shell.
const AIM_TMPFS: f64 = 1.25;
/// The thin hook on disk: at most this many times a small file made durable.
const AIM_DISK: f64 = 1.2;
/// An inline plugin: at most this many times its yardstick.
const AIM_INLINE: f64 = 5.0;

/// The hash part of a store path; any value works.
const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";

/// A state directory of its own with a configuration, and a store with one derivation.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn make(parent: &Path, name: &str, configuration: &str) -> Result<Self> {
        let directory = parent.join(format!("hookrun-bench-{}-{name}", std::process::id()));
        let store = directory.join("store");
        std::fs::create_dir_all(&store)
            .with_context(|| format!("cannot make {}", store.display()))?;
        let output = store.join(format!("{HASH}-bench"));
        std::fs::write(&output, "hello\n")?;
        let derivation = format!(
            r#"Derive([("out","{output}","","")],[],[],"x86_64-linux","/bin/sh",["-c","echo hello > $out"],[("name","bench"),("out","{output}")])"#,
            output = output.display()
        );
        std::fs::write(store.join(format!("{HASH}-bench.drv")), derivation)?;
        std::fs::write(directory.join("hookrun.toml"), configuration)?;
        Ok(Self { directory })
    }

    /// The hook, as Nix calls it.
    fn hook(&self, program: &Path) -> Command {
        let mut command = self.hookrun(program, "hook");
        command.arg("post-build");
        command
    }

    /// Another command, in the same environment.
    fn hookrun(&self, program: &Path, subcommand: &str) -> Command {
        let store = self.directory.join("store");
        let mut command = Command::new(program);
        command
            .arg(subcommand)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/nonexistent")
            .env("DRV_PATH", store.join(format!("{HASH}-bench.drv")))
            .env("OUT_PATHS", store.join(format!("{HASH}-bench")))
            .env("NIX_STORE_DIR", &store)
            .env("NIX_STATE_DIR", self.directory.join("var"))
            .env("NIX_CONF_DIR", self.directory.join("etc"))
            .env("HOOKRUN_CONFIG", self.directory.join("hookrun.toml"))
            .env("HOOKRUN_STATE_DIR", self.directory.join("state"));
        command
    }

    fn spooled(&self) -> usize {
        std::fs::read_dir(self.directory.join("state/spool")).map_or(0, Iterator::count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A configuration in which hooks start no worker, which would use processor time.
const THIN: &str = "[worker]\nstart = \"service\"\n";
/// Returns a configuration with a gate that accepts each build.
fn inline(guest: &Path) -> String {
    format!(
        "[worker]\nstart = \"service\"\n[plugins.gate]\nsource = \"{}\"\nhooks = [\"post-build\"]\ngate = true\n\
         grant = {{ state = true }}\n",
        guest.display()
    )
}

/// Builds a guest of the tests.
fn guest(target: &Path, name: &str) -> Result<PathBuf> {
    let target = target.join("guests");
    cargo()
        .args([
            "build",
            "--release",
            "--target",
            "wasm32-wasip2",
            "--package",
            &format!("guest-{name}"),
            "--target-dir",
        ])
        .arg(&target)
        .run()?;
    Ok(target.join(format!("wasm32-wasip2/release/guest_{name}.wasm")))
}

/// Builds the release and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Compiler)?;
    let target = target_directory()?;
    let program = match &options.program {
        Some(program) => {
            program.canonicalize().with_context(|| format!("there is no {}", program.display()))?
        }
        None => {
            cargo().args(["build", "--release", "--package", "hookrun"]).run()?;
            target.join("release/hookrun")
        }
    };
    let wanted = |part: Part| options.part.is_none_or(|only| only == part);
    let disk = options.disk.clone().unwrap_or(target);
    if !options.tmpfs.is_dir() {
        bail!(
            "there is no {}; name a memory file system with --tmpfs DIR",
            options.tmpfs.display()
        );
    }
    let mut table = Table::new();
    let hook = program.with_file_name("hookrun-hook");
    if !hook.is_file() {
        bail!("there is no {}; put it beside hookrun", hook.display());
    }
    if wanted(Part::Hooks) {
        hooks(&mut table, &hook, &program, options)?;
    }
    if wanted(Part::Queue) {
        machine::prepare(Need::Nix)?;
        queue::many_hooks(&mut table, &hook, &Place::make(&disk, "many", THIN)?)?;
        from_nix::many_hooks(&mut table, &hook, &disk)?;
        let trivial = queue::trivial(&guest(&target_directory()?, "greedy")?);
        let place = Place::make(&disk, "queue", &trivial)?;
        queue::worker(&mut table.notes, &program, &place, options.events)?;
    }
    if wanted(Part::Builds) {
        machine::prepare(Need::Nix)?;
        builds::compare(&mut table, &program, &disk, LONG_RUNS.min(options.runs))?;
    }
    if wanted(Part::Paths) {
        machine::prepare(Need::Nix)?;
        paths::differences(&mut table, &hook, &disk, LONG_RUNS.min(options.runs))?;
        paths::upload(&mut table, &program, &disk, LONG_RUNS.min(options.runs))?;
    }
    table.print(options.record)?;
    if wanted(Part::BuildersSim) {
        builders_sim::run(&program, options.seeds)?;
    }
    Ok(())
}

/// Rows about one hook at a time.
fn hooks(table: &mut Table, hook: &Path, program: &Path, options: &Options) -> Result<()> {
    let shell = || {
        let mut command = Command::new("sh");
        command.args(["-c", "true"]);
        command
    };
    let runs = options.runs;
    let place = Place::make(&options.tmpfs, "thin", THIN)?;
    table.compare(
        runs,
        ("sh -c true", &shell),
        &[
            (("thin hook, state on tmpfs", &|| place.hook(hook)), Some(AIM_TMPFS)),
            (("the same by hookrun itself", &|| place.hook(program)), None),
        ],
    )?;
    expect_spooled(&place, 2 * runs)?;

    let disk = options.disk.clone().map_or_else(target_directory, Ok)?;
    let place = Place::make(&disk, "disk", THIN)?;
    let file = place.directory.join("1k");
    let dd = || {
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=1024", "count=1", "conv=fsync", "status=none"]);
        command.arg(format!("of={}", file.display()));
        command
    };
    table.compare(
        runs,
        ("dd conv=fsync of 1 KiB", &dd),
        &[(("thin hook, state on disk", &|| place.hook(hook)), Some(AIM_DISK))],
    )?;
    expect_spooled(&place, runs)?;

    let place =
        Place::make(&options.tmpfs, "inline", &inline(&guest(&target_directory()?, "good")?))?;
    place.hookrun(program, "compile").run()?;
    table.compare(
        runs,
        ("sh -c true", &shell),
        &[(("gate plugin, compiled", &|| place.hook(hook)), Some(AIM_INLINE))],
    )
}

/// Checks that each hook wrote its event; a hook that fails may be faster.
fn expect_spooled(place: &Place, runs: usize) -> Result<()> {
    let (spooled, wanted) = (place.spooled(), runs);
    if spooled < wanted {
        bail!(
            "{wanted} hooks ran and {spooled} events are in the spool; the measurement is not valid"
        );
    }
    Ok(())
}
