//! `cargo xtask bench-builders`: what builder selection costs and saves with real Nix, beside Nix's
//! own hook in the same run.
//!
//! * 16 derivations of one second over machines that take one second to connect, in two ratios: to
//!   the ideal of 2 s, and to Nix's hook;
//! * the same with 8 derivations and a machine first in the list that takes 3 s to fail;
//! * from a question to its answer on a machine that answers at once;
//! * the same with 10 to 5,000 machines, answered before connecting: what hookrun needs to decide,
//!   by the stock rule and by the bundled policy.
//!
//! Machines are stores in a directory of their own, reached through a script in the place of ssh.
//! Needs root, for chroot builds.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
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
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The program to measure, in place of a release build made now.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// What a chroot build needs for `/bin/sh` and `/bin/sleep`.
const SANDBOX_PATHS: &str = "/bin /usr/bin /lib /lib64 /usr/lib /usr/lib64";
/// Questions for the time to an answer.
const QUESTIONS: usize = 20;
/// Machines to decide among.
const MACHINES: [u32; 4] = [10, 100, 1000, 5000];
/// What a thousand more machines may cost in the host, in milliseconds.
const AIM_THOUSAND: f64 = 1.0;
/// What all machines here build.
const SYSTEM: &str = "x86_64-linux";
/// What none of them builds.
const OTHER_SYSTEM: &str = "riscv64-linux";
const POLICY: &str = "[worker]\nstart = \"none\"\n[plugins.speed]\nsource = \"bundled:speed-factor\"\ngrant = { state = true }\n";

/// A private Nix.
struct Place {
    directory: PathBuf,
    count: std::cell::Cell<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Store paths are read-only.
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(&self.directory).status();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Place {
    fn make() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("hookrun-bench-{}", std::process::id()));
        for name in ["store", "var", "log", "etc", "home", "bin", "m"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        let settings = format!(
            "sandbox = false\nsubstituters =\nbuild-users-group =\nexperimental-features = nix-command\n\
             sandbox-paths = {SANDBOX_PATHS}\n"
        );
        std::fs::write(directory.join("etc/nix.conf"), settings)?;
        std::fs::write(directory.join("hookrun.toml"), "[worker]\nstart = \"none\"\n")?;
        std::fs::write(
            directory.join("many.nix"),
            r#"{ run, count, seconds }:
let one = n: derivation {
  name = "bench-${run}-${toString n}"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "/bin/sleep ${seconds}; echo ${run} ${toString n} > $out" ];
}; in builtins.genList one count
"#,
        )?;
        Ok(Self { directory, count: std::cell::Cell::new(0) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A machine served by `script`.
    fn machine(&self, name: &str, slots: u32, speed_factor: u32, script: &str) -> Result<String> {
        let program = self.path(&format!("bin/{name}"));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(format!(
            "ssh://localhost?remote-program={}&remote-store={} - - {slots} {speed_factor}",
            program.display(),
            self.path("m").join(name).display()
        ))
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NIX_STORE_DIR", self.path("store"))
            .env("NIX_STATE_DIR", self.path("var"))
            .env("NIX_LOG_DIR", self.path("log"))
            .env("NIX_CONF_DIR", self.path("etc"))
            .env("NIX_USER_CONF_FILES", "/dev/null")
            .env("HOME", self.path("home"))
            .env("HOOKRUN_CONFIG", self.path("hookrun.toml"))
            .env("HOOKRUN_STATE_DIR", self.path("state"));
        command
    }

    /// Seconds for so many derivations of one second. Nothing is remembered from the run before.
    fn build(&self, count: usize, builders: &str, hook: Option<&Path>) -> Result<f64> {
        let number = self.count.get() + 1;
        self.count.set(number);
        let _ = std::fs::remove_dir_all(self.path("state"));
        let mut command = self.command("nix-build");
        command.arg(self.path("many.nix")).args(["--no-out-link", "--max-jobs", "0"]);
        command.args(["--builders", builders, "--argstr", "run"]);
        command.arg(number.to_string()).args([
            "--arg",
            "count",
            &count.to_string(),
            "--argstr",
            "seconds",
            "1",
        ]);
        if let Some(hook) = hook {
            command.args(["--option", "build-hook"]).arg(hook);
        }
        let begin = Instant::now();
        let output = command.stdin(Stdio::null()).output().context("`nix-build` does not start")?;
        let time = begin.elapsed();
        if !output.status.success() {
            bail!("nix-build fails: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(time.as_secs_f64())
    }

    /// From a question to its answer, in milliseconds, with what starts the hook.
    fn answer(&self, builders: &str, hook: &mut Command) -> Result<f64> {
        self.answer_after(builders, hook, &[])
    }

    /// The same where the hook has declined builds of the systems `before` first, which do not
    /// count.
    fn answer_after(&self, builders: &str, hook: &mut Command, before: &[&str]) -> Result<f64> {
        hook.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut begin = Instant::now();
        let mut child = hook.spawn().context("the hook does not start")?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        stdin.write_all(&settings(builders))?;
        let mut lines = BufReader::new(child.stderr.take().context("no pipe")?).lines();
        let mut answer = || lines.find_map(|line| line.ok().filter(|line| line.starts_with("# ")));
        for system in before {
            stdin.write_all(&question(system, &self.path("store")))?;
            let other = answer();
            if other.as_deref() != Some("# decline") {
                bail!("the hook answers {other:?} for {system}");
            }
            begin = Instant::now();
        }
        stdin.write_all(&question(SYSTEM, &self.path("store")))?;
        let answer = answer();
        let time: Duration = begin.elapsed();
        let _ = child.kill();
        child.wait()?;
        match answer.as_deref() {
            Some("# accept") => Ok(time.as_secs_f64() * 1000.0),
            other => bail!("the hook answers {other:?}"),
        }
    }
}

fn number(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_le_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    number(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// Settings, as Nix writes them: see `hookrun_nix::wire`.
fn settings(builders: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in [("builders", builders), ("max-jobs", "0"), ("system", SYSTEM)] {
        number(&mut bytes, 1);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    number(&mut bytes, 0);
    bytes
}

/// One question, of a build that cannot be done here.
fn question(system: &str, store: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(&mut bytes, "try");
    number(&mut bytes, 0);
    text(&mut bytes, system);
    text(
        &mut bytes,
        &store.join("00bgd045z0d4icpbc2yyz4gx48ak44la-bench.drv").display().to_string(),
    );
    number(&mut bytes, 0);
    bytes
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures and prints a table.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Nix)?;
    let program = match &options.program {
        Some(program) => {
            program.canonicalize().with_context(|| format!("there is no {}", program.display()))?
        }
        None => {
            cargo().args(["build", "--release", "--package", "hookrun"]).run()?;
            target_directory()?.join("release/hookrun")
        }
    };
    let place = Place::make()?;
    let hook = place.path("bin/hookrun-build-hook");
    std::os::unix::fs::symlink(&program, &hook)?;
    let serve = "exec nix-store \"$@\"";
    let slow = place.machine("slow", 16, 1, &format!("sleep 1; {serve}"))?;
    let dead = place.machine("dead", 16, 9, "sleep 3; exit 1")?;
    let instant = place.machine("instant", 1, 1, serve)?;
    let mut table = format!("{:<58} {:>9} {:>9} {:>8}  aim\n", "", "Nix's", "hookrun", "");

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..options.runs {
        for (times, hook) in times.iter_mut().zip([None, Some(hook.as_path())]) {
            times.push(place.build(16, &slow, hook)?);
        }
    }
    let [stock, ours] = times.map(median);
    row(
        &mut table,
        "16 builds of 1 s, connecting takes 1 s (ideal 2 s)",
        (stock, ours, "s"),
        ours / 2.0,
        1.75,
        "of the ideal",
    )?;

    let both = format!("{dead} ; {slow}");
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..options.runs {
        for (times, hook) in times.iter_mut().zip([None, Some(hook.as_path())]) {
            times.push(place.build(8, &both, hook)?);
        }
    }
    let [stock, ours] = times.map(median);
    row(&mut table, "8 builds, a dead machine (3 s) first", (stock, ours, "s"), ours, 7.0, "s")?;

    let nix = std::fs::read_link("/proc/self/exe")
        .map(|_| which("nix"))?
        .context("there is no `nix` in PATH")?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..QUESTIONS {
        let mut stock = place.command(&nix);
        stock.arg0("build-remote").arg("3");
        times[0].push(place.answer(&instant, &mut stock)?);
        let _ = std::fs::remove_dir_all(place.path("state"));
        let mut ours = place.command(&hook);
        ours.arg("3");
        times[1].push(place.answer(&instant, &mut ours)?);
    }
    let [stock, ours] = times.map(median);
    row(
        &mut table,
        "question to accept, a machine that answers at once",
        (stock, ours, "ms"),
        ours - stock,
        10.0,
        "ms more",
    )?;
    decisions(&mut table, &place, &hook, "stock rule", true)?;
    std::fs::write(place.path("hookrun.toml"), POLICY)?;
    place.command(&program).arg("compile").run()?;
    decisions(&mut table, &place, &hook, "bundled policy", false)?;
    print!("{table}");
    Ok(())
}

/// Lines about deciding among many machines: nothing forbids any, and Nix is answered before one is
/// connected.
fn decisions(
    table: &mut String,
    place: &Place,
    hook: &Path,
    who: &str,
    has_aim: bool,
) -> Result<()> {
    // The first question of a command, with the start of the process and the reading of the
    // machines; and a later one, which is the deciding.
    let mut medians = [Vec::new(), Vec::new()];
    for count in MACHINES {
        let (script, stores) = (place.path("bin/slow"), place.path("m"));
        let mut machines = String::new();
        for number in 0..count {
            let (script, stores) = (script.display(), stores.display());
            let factor = 1 + number % 7;
            writeln!(
                machines,
                "ssh://localhost?remote-program={script}&remote-store={stores}/{number} - - 4 {factor}"
            )?;
        }
        std::fs::write(place.path("machines"), machines)?;
        let list = format!("@{}", place.path("machines").display());
        for (before, medians) in [&[][..], &[OTHER_SYSTEM]].into_iter().zip(&mut medians) {
            let mut times = Vec::new();
            for _ in 0..QUESTIONS {
                let mut ours = place.command(hook);
                ours.arg("3");
                times.push(place.answer_after(&list, &mut ours, before)?);
            }
            medians.push(median(times));
        }
    }
    let [first, later] = &medians;
    for ((count, first), later) in MACHINES.iter().zip(first).zip(later) {
        writeln!(
            table,
            "{:<58} {first:>6.2} ms, and {later:.2} ms for a later one",
            format!("question to accept, {count} machines, {who}")
        )?;
    }
    for (what, medians, has_aim) in
        [("of the first", first, false), ("of a later one", later, has_aim)]
    {
        if let (Some(few), Some(many)) = (medians.first(), medians.last()) {
            let thousand = (many - few) / f64::from(MACHINES[3] - MACHINES[0]) * 1000.0;
            let verdict = match has_aim {
                true if thousand <= AIM_THOUSAND => format!("  at most {AIM_THOUSAND} ms: met"),
                true => format!("  at most {AIM_THOUSAND} ms: MISSED"),
                false => String::new(),
            };
            writeln!(
                table,
                "{:<58} {thousand:>6.2} ms{verdict}",
                format!("{what}, for a thousand machines, {who}")
            )?;
        }
    }
    Ok(())
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

fn row(
    table: &mut String,
    what: &str,
    times: (f64, f64, &str),
    figure: f64,
    aim: f64,
    unit: &str,
) -> Result<()> {
    let (stock, ours, seconds) = times;
    let verdict = if figure <= aim { "met" } else { "MISSED" };
    writeln!(
        table,
        "{what:<58} {stock:>6.2} {seconds:<2} {ours:>6.2} {seconds:<2} {figure:>7.2}  at most {aim} {unit}: {verdict}"
    )?;
    Ok(())
}
