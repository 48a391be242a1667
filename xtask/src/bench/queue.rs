//! The queue under load: many hooks at once, how fast a worker empties the spool through a trivial
//! plugin, what it holds in memory meanwhile and when idle, and how long it takes to start with all
//! of it in the spool, and with all of it in the journal.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::WaitOptions;
use sha2::{Digest as _, Sha256};

use super::table::{Figures, Of, Table};
use super::{HASH, Place};
use crate::process::CommandExt as _;

/// Hooks at once.
const AT_ONCE: usize = 100;
/// How often each of them is called.
const ROUNDS: usize = 10;
/// The 99th percentile of many hooks at once, against that of a shell.
const AIM_AT_ONCE: f64 = 1.5;
/// Events a second through a trivial plugin, on one core, at least.
const AIM_EVENTS: f64 = 5000.0;
/// Memory of an idle worker (both processes), at most, in MiB.
const AIM_IDLE: f64 = 30.0;
/// Time limit for a worker to become ready.
const PATIENCE: Duration = Duration::from_mins(5);
/// Clock ticks a second in /proc (`getconf CLK_TCK`; always 100 on Linux).
const TICKS: f64 = 100.0;

/// Runs `AT_ONCE` commands in parallel, `ROUNDS` times each. Returns the times of all calls.
fn at_once(command: &(dyn Fn() -> Command + Sync)) -> Result<Figures> {
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    (0..ROUNDS)
                        .map(|_| {
                            let mut command = command();
                            command
                                .stdin(Stdio::null())
                                .stdout(Stdio::null())
                                .stderr(Stdio::null());
                            let begin = Instant::now();
                            let status = command.status()?;
                            let time = begin.elapsed();
                            if status.success() { Ok(time) } else { bail!("it failed ({status})") }
                        })
                        .collect::<Result<Vec<Duration>>>()
                })
            })
            .collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread failed")));
        joined.collect::<Result<Vec<_>>>()
    })?;
    Ok(Figures::of(times.into_iter().flatten().collect()))
}

/// A row about many hooks at once; `place` is on disk.
pub(super) fn many_hooks(table: &mut Table, hook: &Path, place: &Place) -> Result<()> {
    let shell = at_once(&|| {
        let mut command = Command::new("sh");
        command.args(["-c", "true"]);
        command
    })?;
    let hooks = at_once(&|| place.hook(hook))?;
    let name = format!("thin hook, state on disk, {AT_ONCE} at once");
    table.add(Of::P99, (&name, &hooks), ("sh -c true", &shell), Some(AIM_AT_ONCE));
    let (spooled, wanted) = (place.spooled(), AT_ONCE * ROUNDS);
    if spooled < wanted {
        bail!(
            "{wanted} hooks ran and {spooled} events are in the spool; the measurement is not valid"
        );
    }
    Ok(())
}

/// A configuration with a plugin that makes two host calls and is done.
pub(super) fn trivial(guest: &Path) -> String {
    format!(
        "[worker]\nstart = \"service\"\nconcurrency = 32\n[plugins.trivial]\nsource = \"{}\"\nhooks = [\"post-build\"]\n\
         config = {{ want = \"random\", times = 8 }}\ngrant = {{ nix-store = \"outputs\" }}\n",
        guest.display()
    )
}

/// Lines about a worker that finds `events` events.
pub(super) fn worker(
    table: &mut String,
    program: &Path,
    place: &Place,
    events: usize,
) -> Result<()> {
    place.hookrun(program, "compile").run()?;
    std::fs::create_dir_all(place.directory.join("var/gcroots"))?;
    fill(program, place, events)?;
    // The worker does not wait for its runner, whose processor time counts too.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (before, begin) = (processor_seconds()?, Instant::now());
    let mut drain = place.hookrun(program, "drain").stdout(Stdio::null()).spawn()?;
    let mut most = 0.0_f64;
    while drain.try_wait()?.is_none() {
        most = most.max(highest(drain.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let wall = begin.elapsed().as_secs_f64();
    if !drain.wait()?.success() || place.spooled() > 0 {
        bail!("`hookrun drain` failed or left events in the spool");
    }
    while rustix::process::wait(WaitOptions::empty()).is_ok() {}
    rustix::process::set_child_subreaper(None)?;
    let processor = processor_seconds()? - before;
    let count = f64::from(u32::try_from(events)?);
    let rate = count / processor;
    let verdict = if rate >= AIM_EVENTS { "met" } else { "MISSED" };
    writeln!(table, "{:<52} {:>7.0} /s", format!("{events} events, by the clock"), count / wall)?;
    writeln!(
        table,
        "{:<52} {rate:>7.0} /s  at least {AIM_EVENTS}: {verdict}",
        "the same, by processor time of all processes"
    )?;
    writeln!(table, "{:<52} {most:>7.1} MiB", "most memory of the worker meanwhile")?;

    let daemon = Daemon::start(program, place)?;
    place.hook(program).run()?;
    let waited = Instant::now();
    while place.spooled() > 0 && waited.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(2));
    let idle = resident(daemon.child.id());
    let verdict = if idle <= AIM_IDLE { "met" } else { "MISSED" };
    writeln!(
        table,
        "{:<52} {idle:>7.1} MiB  at most {AIM_IDLE} MiB: {verdict}",
        "idle worker and runner, proportional set size"
    )?;
    drop(daemon);

    fill(program, place, events)?;
    let daemon = Daemon::start(program, place)?;
    let ready = daemon.ready_after.as_secs_f64() * 1000.0;
    writeln!(table, "{:<52} {ready:>7.2} ms", format!("ready with {events} events in the spool"))?;
    let first = daemon.hear(|said| said.contains("tasks run"))?.as_secs_f64() * 1000.0;
    writeln!(table, "{:<52} {first:>7.2} ms", "until its first tasks run")?;
    while place.spooled() > 0 {
        if daemon.begin.elapsed() > PATIENCE {
            bail!("the spool is not empty after {} s", PATIENCE.as_secs());
        }
        // Listing a full directory takes time, so it is not done more often.
        std::thread::sleep(Duration::from_millis(250));
    }
    let (taken, processor) =
        (daemon.begin.elapsed().as_secs_f64(), own_processor_seconds(daemon.child.id()));
    writeln!(table, "{:<52} {taken:>7.2} s", "until the spool is empty")?;
    writeln!(table, "{:<52} {processor:>7.2} s", "processor time of the worker until then")?;
    // The events are now in the journal, and few tasks are done.
    drop(daemon);
    let tasks = due(program, place)?;
    let daemon = Daemon::start(program, place)?;
    let (ready, most) = (daemon.ready_after.as_secs_f64() * 1000.0, highest(daemon.child.id()));
    writeln!(table, "{:<52} {ready:>7.2} ms", format!("ready with {tasks} tasks in the journal"))?;
    writeln!(table, "{:<52} {most:>7.1} MiB", "memory of that worker")?;
    Ok(())
}

/// `hookrun daemon`, ready.
pub(super) struct Daemon {
    child: Child,
    listener: UnixDatagram,
    begin: Instant,
    ready_after: Duration,
}

impl Daemon {
    fn start(program: &Path, place: &Place) -> Result<Self> {
        Self::of(place.hookrun(program, "daemon"), &place.directory)
    }

    /// Starts `command` and waits until it is ready; its socket is made in `directory`.
    pub(super) fn of(mut command: Command, directory: &Path) -> Result<Self> {
        let socket = directory.join("notify");
        let _gone = std::fs::remove_file(&socket);
        let listener = UnixDatagram::bind(&socket)?;
        listener.set_read_timeout(Some(PATIENCE))?;
        let begin = Instant::now();
        let child = command
            .env("NOTIFY_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut daemon = Self { child, listener, begin, ready_after: Duration::ZERO };
        daemon.ready_after = daemon.hear(|said| said.starts_with("READY=1"))?;
        Ok(daemon)
    }

    /// Waits for a matching message to the service manager. Returns the time since the start.
    fn hear(&self, what: impl Fn(&str) -> bool) -> Result<Duration> {
        let mut message = [0; 4096];
        loop {
            let length = self
                .listener
                .recv(&mut message)
                .context("the worker did not send the expected message")?;
            if message
                .get(..length)
                .and_then(|said| std::str::from_utf8(said).ok())
                .is_some_and(&what)
            {
                return Ok(self.begin.elapsed());
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _asked = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ended = self.child.wait();
    }
}

/// Puts `count` events into the spool, as hooks leave them: copies of what one writes, each about a
/// derivation of its own, with its root.
fn fill(program: &Path, place: &Place, count: usize) -> Result<()> {
    let spool = place.directory.join("state/spool");
    let roots = place.directory.join("var/gcroots/hookrun");
    std::fs::create_dir_all(&roots)?;
    place.hook(program).run()?;
    let name = std::fs::read_dir(&spool)?
        .flatten()
        .map(|entry| entry.path())
        .next()
        .context("the hook left no event")?;
    let text = std::fs::read_to_string(&name)?;
    let (_, json) = text.split_once('\n').context("the event has no first line")?;
    let id = name
        .file_name()
        .and_then(|name| name.to_str())
        .context("the event has an odd name")?
        .to_owned();
    let prefix = id.get(..id.len() - 12).context("the event's id is short")?;
    for number in 0..count {
        let other = format!("{prefix}{number:012x}");
        let json = json.replace(&id, &other).replace(HASH, &format!("{number:032}"));
        let sealed =
            format!("hookrun-event 1 sha256:{:x}\n{json}", Sha256::digest(json.as_bytes()));
        let path = spool.join(&other);
        std::fs::write(&path, sealed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        let output = place.directory.join("store").join(format!("{number:032}-bench"));
        std::os::unix::fs::symlink(output, roots.join(format!("{other}-0")))?;
    }
    std::fs::remove_file(name)?;
    Ok(())
}

/// Processor time of all children that have been waited for, and of theirs (proc_pid_stat(5),
/// fields 16 and 17).
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(") ").context("/proc/self/stat is odd")?;
    let ticks: f64 =
        rest.split(' ').skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}

/// Processor time of one process (the fields 14 and 15).
fn own_processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Returns the number of due tasks.
fn due(program: &Path, place: &Place) -> Result<u64> {
    let status: serde_json::Value =
        serde_json::from_str(&place.hookrun(program, "status").args(["--format", "json"]).read()?)?;
    let plugins = status
        .get("plugins")
        .and_then(serde_json::Value::as_array)
        .context("the status names no plugins")?;
    Ok(plugins.iter().filter_map(|plugin| plugin.get("due")?.as_u64()).sum())
}

/// The most memory that a process has had, in MiB.
fn highest(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kibibytes(&status, "VmHWM:") / 1024.0
}

/// The memory of a process and its children, what they share counted once, in MiB.
fn resident(pid: u32) -> f64 {
    let of = |pid: u32| {
        let rollup =
            std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        kibibytes(&rollup, "Pss:") / 1024.0
    };
    of(pid) + children(pid).into_iter().map(of).sum::<f64>()
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

fn kibibytes(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
