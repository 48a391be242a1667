//! `cargo xtask bench`: ratios of a release build on this machine, each taken in one run with its
//! yardstick.
//!
//! * the thin post-build hook with its state on tmpfs against `sh -c true`: what hookrun adds to
//!   starting a process;
//! * the same on disk against `dd conv=fsync` of 1 KiB: what it adds to making one small file
//!   durable;
//! * an inline (`gate`) plugin with a warm artifact cache against `sh -c true`;
//! * the queue under load (`bench/queue.rs`), and hooks that real Nix calls at once
//!   (`bench/from_nix.rs`);
//! * builds placed by the bundled policy against Nix's own rule, simulated
//!   (`bench/builders_sim.rs`).
//!
//! But for `from_nix` the hook is called as Nix calls it, on a derivation written here.

mod builders_sim;
mod from_nix;
mod queue;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

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
    /// The bundled policy in the simulator, against Nix's own rule.
    BuildersSim,
}

/// Runs before the measured ones, which fill caches and the artifact cache.
const WARM_UP: usize = 10;
/// The thin hook on tmpfs: at most this many times a shell.
const AIM_TMPFS: f64 = 1.5;
/// The thin hook on disk: at most this many times a small file made durable.
const AIM_DISK: f64 = 1.3;
/// An inline plugin: at most this many times its yardstick.
const AIM_INLINE: f64 = 5.0;

/// A hash part as store paths have it; nothing is looked up by it.
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

/// No worker beside the measured process: it would take its turn on the processor.
const THIN: &str = "[worker]\nstart = \"service\"\n";
/// A gate that is content: the guest of the tests that does everything right.
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
    let mut table = format!("{:<52} {:>10} {:>10} {:>8}  aim\n", "", "median", "p99", "ratio");
    if wanted(Part::Hooks) {
        hooks(&mut table, &program, options, &disk)?;
    }
    if wanted(Part::Queue) {
        machine::prepare(Need::Nix)?;
        queue::many_hooks(&mut table, &program, &Place::make(&disk, "many", THIN)?)?;
        from_nix::many_hooks(&mut table, &program, &disk)?;
        let trivial = queue::trivial(&guest(&target_directory()?, "greedy")?);
        queue::worker(
            &mut table,
            &program,
            &Place::make(&disk, "queue", &trivial)?,
            options.events,
        )?;
    }
    print!("{table}");
    if wanted(Part::BuildersSim) {
        builders_sim::run(&program, options.seeds)?;
    }
    Ok(())
}

/// Lines about one hook at a time.
fn hooks(table: &mut String, program: &Path, options: &Options, disk: &Path) -> Result<()> {
    let shell = || {
        let mut command = Command::new("sh");
        command.args(["-c", "true"]);
        command
    };
    let place = Place::make(&options.tmpfs, "thin", THIN)?;
    compare(
        table,
        options.runs,
        AIM_TMPFS,
        ("sh -c true", &shell),
        ("thin hook, state on tmpfs", &|| place.hook(program)),
    )?;
    expect_spooled(&place, options.runs)?;

    let place = Place::make(disk, "disk", THIN)?;
    let file = place.directory.join("1k");
    let dd = || {
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "bs=1024", "count=1", "conv=fsync", "status=none"]);
        command.arg(format!("of={}", file.display()));
        command
    };
    compare(
        table,
        options.runs,
        AIM_DISK,
        ("dd conv=fsync of 1 KiB", &dd),
        ("thin hook, state on disk", &|| place.hook(program)),
    )?;
    expect_spooled(&place, options.runs)?;

    let place =
        Place::make(&options.tmpfs, "inline", &inline(&guest(&target_directory()?, "good")?))?;
    place.hookrun(program, "compile").run()?;
    compare(
        table,
        options.runs,
        AIM_INLINE,
        ("sh -c true", &shell),
        ("inline plugin, warm artifact", &|| place.hook(program)),
    )?;

    Ok(())
}

/// A hook that does nothing would be fast.
fn expect_spooled(place: &Place, runs: usize) -> Result<()> {
    let (spooled, wanted) = (place.spooled(), runs + WARM_UP);
    if spooled < wanted {
        bail!(
            "{wanted} hooks ran and {spooled} events are in the spool; the figures would mean nothing"
        );
    }
    Ok(())
}

type Named<'a> = (&'a str, &'a dyn Fn() -> Command);

/// Runs both in turn, so that both see the same machine, and adds two lines to the table.
fn compare(
    table: &mut String,
    runs: usize,
    aim: f64,
    yardstick: Named<'_>,
    subject: Named<'_>,
) -> Result<()> {
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for run in 0..WARM_UP + runs {
        for (times, (name, command)) in times.iter_mut().zip([yardstick, subject]) {
            let mut command = command();
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let begin = Instant::now();
            let status = command.status().with_context(|| format!("{name} does not start"))?;
            let time = begin.elapsed();
            if !status.success() {
                bail!("{name} failed ({status}); run it by hand to see why");
            }
            if run >= WARM_UP {
                times.push(time);
            }
        }
    }
    let [base, hook] = times.map(Figures::of);
    let ratio = hook.median / base.median;
    let verdict = if ratio <= aim { "met" } else { "MISSED" };
    writeln!(table, "{:<52} {:>7.2} ms {:>7.2} ms", yardstick.0, base.median, base.p99)?;
    writeln!(
        table,
        "{:<52} {:>7.2} ms {:>7.2} ms {ratio:>7.2}x  at most {aim}x: {verdict}",
        subject.0, hook.median, hook.p99
    )?;
    Ok(())
}

/// Milliseconds.
struct Figures {
    median: f64,
    p99: f64,
}

impl Figures {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
        };
        Self { median: at(50), p99: at(99) }
    }
}
