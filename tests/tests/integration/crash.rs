//! The queue under SIGKILL: each event that a hook has spooled ends exactly once in the journal,
//! none is lost, and the plugin has seen each of them at least once. Hooks and workers are killed
//! before and after each boundary (`fsync`, `rename` and similar calls), and at random moments
//! while 100 hooks run at once.
//!
//! `cargo xtask crash --events 10000 --kills 1000` runs the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hookrun_nix::layout;
use hookrun_nix::outcome::Class;
use hookrun_queue::journal::{Journal, LogFilter, TaskState};
use hookrun_queue::spool;
use hookrun_tests::lab::{Boundary, ConfigFile, PluginTable, Point, Ran, Scene, toml};

/// The number of hooks at once.
const HOOKS: usize = 100;
/// SIGKILL.
const KILLED: Option<i32> = Some(9);
/// The longest time after which a worker is killed. It starts and runs tasks within this time, even
/// on a machine under load.
const WORKER_LIFE: Duration = Duration::from_secs(2);
/// Of this many kills, at least one is that of a worker.
const KILLS_PER_WORKER: usize = 10;
/// The longest time after which a hook is killed. It runs for a few milliseconds.
const HOOK_LIFE: Duration = Duration::from_millis(8);

#[test]
fn no_event_is_lost_when_hooks_and_workers_are_killed() {
    crash(300, 130);
}

#[test]
#[ignore = "takes minutes: `cargo xtask crash` runs it"]
fn no_event_is_lost_in_a_long_run_of_kills() {
    let number = |name: &str, default| {
        std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
    };
    crash(number("HOOKRUN_CRASH_EVENTS", 10_000), number("HOOKRUN_CRASH_KILLS", 1000));
}

/// Returns a random part of `whole`.
fn part_of(whole: Duration, chance: &mut fastrand::Rng) -> Duration {
    whole.mul_f64(chance.f64())
}

/// A scene and the results of its hooks.
struct Storm {
    scene: Scene,
    boundary: Boundary,
    next: AtomicUsize,
    /// The numbers of events whose hook returned 0.
    handed_over: Mutex<BTreeSet<usize>>,
    /// The numbers of events whose hook was killed. Each of them was spooled once or not at all.
    perhaps: Mutex<BTreeSet<usize>>,
    /// The messages of hooks that ended early, for example after two seconds on a machine under
    /// load. These count as killed ones.
    given_up: Mutex<Vec<String>>,
}

impl Storm {
    fn new() -> Self {
        let keeper =
            PluginTable::keeper().limit("state-keys", 100_000).limit("state-bytes", "64MiB");
        let file = ConfigFile::new().worker("roots-max-age", "1h");
        let file = plugins().fold(file, |file, (plugin, digit)| {
            let filter = toml! { name = (format!("*{digit}")) };
            file.plugin(&plugin, keeper.clone().set("filter", filter))
        });
        let scene = Scene::new().config(&file);
        scene.hookrun(&["compile"]).expect_success();
        // Nix makes this directory with its first build, and this test builds nothing.
        std::fs::create_dir(scene.private_nix().state_dir().join("gcroots")).unwrap();
        let boundary = Boundary::compile(&scene);
        Self {
            scene,
            boundary,
            next: AtomicUsize::new(0),
            handed_over: Mutex::default(),
            perhaps: Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    /// Returns a hook for another build, and the number of the build.
    fn hook(&self) -> (usize, Command) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = format!(
            "{}/{number:032}-{}",
            self.scene.private_nix().store_dir().display(),
            name(number)
        );
        let mut command =
            self.scene.private_nix().command(self.scene.path("bin/hookrun-post-build"));
        command.env("DRV_PATH", format!("{path}.drv")).env("OUT_PATHS", path);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        (number, command)
    }

    /// Records how a hook ended. Returns true if it, or the process that does its work, was killed.
    fn ended(&self, number: usize, child: &mut Child) -> bool {
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        if status.signal() == KILLED {
            self.perhaps.lock().unwrap().insert(number);
            return true;
        }
        assert!(status.success(), "a hook must not fail a build: {status}");
        let killed = said.contains("ended early");
        if said.contains("may be lost") || said.contains("is lost") {
            self.perhaps.lock().unwrap().insert(number);
            if !killed {
                self.given_up.lock().unwrap().push(said);
            }
        } else {
            // The hook spooled it, or a process that it started.
            self.handed_over.lock().unwrap().insert(number);
        }
        killed
    }

    /// Runs `count` hooks without killing them.
    fn hand_over(&self, count: usize) {
        for _ in 0..count {
            let (number, mut command) = self.hook();
            assert!(!self.ended(number, &mut command.spawn().unwrap()));
        }
    }

    fn kept(&self) -> usize {
        self.handed_over.lock().unwrap().len()
    }

    /// Kills hooks and workers once before and once after each of their boundaries. Returns the
    /// number of kills.
    fn every_boundary(&self) -> usize {
        // The first hook makes directories.
        self.hand_over(1);
        let log = self.scene.path("boundaries");
        let (number, mut command) = self.hook();
        self.ended(number, &mut self.boundary.log(&mut command, &log).spawn().unwrap());
        let of_hook = Boundary::seen(&log);
        for needed in ["renameat", "fsync"] {
            assert!(
                of_hook.iter().any(|seen| seen == needed),
                "a hook's {needed} is not seen: {of_hook:?}"
            );
        }
        let mut kills = 0;
        for point in points(of_hook.len()) {
            let (number, mut command) = self.hook();
            let killed =
                self.ended(number, &mut self.boundary.kill(&mut command, point).spawn().unwrap());
            assert!(killed, "{point:?} of {of_hook:?}");
            kills += 1;
        }
        std::fs::remove_file(&log).unwrap();
        // This worker makes the journal and takes the events in fallback directories, which later
        // workers do not have to do.
        self.scene.hookrun(&["drain"]).expect_success();
        self.hand_over(3);
        Ran::of(self.boundary.log(&mut self.scene.hookrun_command(&["drain"]), &log))
            .expect_success();
        let of_worker = Boundary::seen(&log);
        let synced = of_worker.iter().filter(|seen| seen.contains("sync")).count();
        assert!(
            synced > 0 && of_worker.iter().any(|seen| seen.starts_with("unlink")),
            "{of_worker:?}"
        );
        let mut survived = Vec::new();
        for point in points(of_worker.len()) {
            self.hand_over(2);
            let mut command = self.scene.hookrun_command(&["drain"]);
            let status = self
                .boundary
                .kill(&mut command, point)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            if status.signal() == KILLED { kills += 1 } else { survived.push(point) }
        }
        // A later worker may have less to do.
        assert!(survived.len() < of_worker.len(), "not reached: {survived:?} of {of_worker:?}");
        eprintln!(
            "boundaries: hook {of_hook:?}, worker {} ({synced} syncs), {kills} kills, not reached {survived:?}",
            of_worker.len()
        );
        kills
    }

    /// Runs [`HOOKS`] hooks at once until `events` are spooled, while hooks and workers are killed
    /// `kills` times.
    fn random(&self, events: usize, kills: usize, seed: u64) {
        let killed = AtomicUsize::new(0);
        let enough = |killed: &AtomicUsize| killed.load(Ordering::Relaxed) >= kills;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut chance = fastrand::Rng::with_seed(seed);
                let (mut lives, begun) = (0, Instant::now());
                while !done.load(Ordering::Relaxed)
                    || !enough(&killed)
                    || lives < kills / KILLS_PER_WORKER
                {
                    let mut command = self.scene.hookrun_command(&["daemon"]);
                    // One in four dies at a random boundary.
                    if chance.usize(..4) == 0 {
                        let point =
                            Point { number: 1 + chance.usize(..40), after: chance.usize(..2) == 0 };
                        self.boundary.kill(&mut command, point);
                    }
                    let mut child =
                        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                    std::thread::sleep(part_of(WORKER_LIFE, &mut chance));
                    // It may have died at its boundary.
                    let _ = child.kill();
                    if child.wait().unwrap().signal() == KILLED {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                    lives += 1;
                }
                eprintln!("{lives} workers in {:.0?}", begun.elapsed());
            });
            let hooks: Vec<_> = (0..HOOKS)
                .map(|thread| {
                    let killed = &killed;
                    scope.spawn(move || {
                        let mut chance = fastrand::Rng::with_seed(seed ^ (thread as u64 + 1));
                        while self.kept() < events {
                            let (number, mut command) = self.hook();
                            // Kills are spread over all events.
                            let kill = !enough(killed) && chance.usize(..events) < kills;
                            let at_boundary = chance.usize(..2) == 0;
                            if kill && at_boundary {
                                let point = Point {
                                    number: 1 + chance.usize(..3),
                                    after: chance.usize(..2) == 0,
                                };
                                self.boundary.kill(&mut command, point);
                            }
                            let mut child = command.spawn().unwrap();
                            if kill && !at_boundary {
                                std::thread::sleep(part_of(HOOK_LIFE, &mut chance));
                                // It may have returned.
                                let _ = child.kill();
                            }
                            if self.ended(number, &mut child) {
                                killed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            for hook in hooks {
                hook.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            worker.join().unwrap();
        });
        eprintln!("{} random kills", killed.load(Ordering::Relaxed));
    }

    /// Fails unless every event ended exactly once, after a worker that was not killed has drained
    /// the queue.
    fn check(&self) {
        let dirs = self.scene.dirs();
        for fallback in layout::fallbacks(&dirs) {
            assert_eq!(spool::count(&fallback), 0, "nothing is left in {}", fallback.display());
            // One of them is outside of the scene.
            let _ = std::fs::remove_dir_all(fallback);
        }
        assert!(self.scene.spooled().is_empty(), "nothing is left in the spool");
        let journal = Journal::open_read_only(&dirs).unwrap().unwrap();
        let mut states: BTreeMap<String, Vec<TaskState>> = BTreeMap::new();
        for task in journal.tasks().unwrap() {
            states.entry(task.event.name).or_default().push(task.state);
        }
        let mut successes: BTreeMap<String, usize> = BTreeMap::new();
        let mut interrupted = 0;
        for attempt in journal.log(&LogFilter::default()).unwrap() {
            match attempt.class {
                Class::Done => *successes.entry(attempt.event.name).or_default() += 1,
                Class::Interrupted => interrupted += 1,
                _ => panic!("an attempt ended badly: {attempt:?}"),
            }
        }
        let (handed_over, perhaps) =
            (self.handed_over.lock().unwrap(), self.perhaps.lock().unwrap());
        for number in handed_over.iter() {
            let name = name(*number);
            assert_eq!(
                states.get(&name).map(Vec::as_slice),
                Some(&[TaskState::Done][..]),
                "{name}: lost, or not once"
            );
            assert_eq!(
                successes.get(&name),
                Some(&1),
                "{name}: ended more than once in the journal"
            );
        }
        let came = perhaps.iter().filter(|number| states.contains_key(&name(**number))).count();
        for (name, states) in &states {
            assert_eq!(states.as_slice(), [TaskState::Done], "{name}");
        }
        let effects = effects(&self.scene.state_dir());
        for number in handed_over.iter() {
            assert!(effects.contains(&name(*number)), "the plugin never saw {}", name(*number));
        }
        // Roots of killed hooks and workers are removed after `roots-max-age`.
        let rooted = || {
            std::fs::read_dir(self.scene.private_nix().state_dir().join("gcroots/hookrun"))
                .unwrap()
                .count()
        };
        let orphans = rooted();
        let mut later = self.scene.hookrun_command(&["drain"]);
        Ran::of(self.boundary.shift_clock(&mut later, 2 * 3600)).expect_success();
        assert_eq!(rooted(), 0, "roots of events that have ended");
        let given_up = self.given_up.lock().unwrap();
        eprintln!(
            "{} hooks said that they gave up, the first: {:?}",
            given_up.len(),
            given_up.first()
        );
        eprintln!(
            "{} handed over, all done once; {} hooks killed; of these and those that gave up {came} had handed over; {interrupted} attempts made again; {orphans} \
             roots were left and swept",
            handed_over.len(),
            perhaps.len() - given_up.len()
        );
    }
}

/// The plugins, each with the last digit of the names that it gets. Each run reads the whole state
/// of its plugin, so one plugin for all events would be slow.
fn plugins() -> impl Iterator<Item = (String, u8)> {
    (0..10).map(|digit| (format!("keeper-{digit}"), digit))
}

fn name(number: usize) -> String {
    format!("crash-{number}")
}

/// Returns the points before and after each of this many boundaries.
fn points(count: usize) -> impl Iterator<Item = Point> {
    (1..=count).flat_map(|number| [false, true].map(|after| Point { number, after }))
}

/// Returns the keys that the plugins have written, one for each derivation.
fn effects(state: &Path) -> BTreeSet<String> {
    let stores =
        hookrun_capability::state::Stores::durable(PathBuf::from(state).join("plugin-state"));
    plugins().flat_map(|(plugin, _)| stores.load(&plugin).unwrap().into_keys()).collect()
}

fn crash(events: usize, kills: usize) {
    let seed = std::env::var("HOOKRUN_CRASH_SEED")
        .ok()
        .map_or_else(|| u64::from(std::process::id()), |text| text.parse().unwrap());
    eprintln!("HOOKRUN_CRASH_SEED={seed}");
    let storm = Storm::new();
    let begun = Instant::now();
    let at_boundaries = storm.every_boundary();
    storm.random(events, kills.saturating_sub(at_boundaries), seed);
    Ran::of(&mut storm.scene.hookrun_command(&["drain"])).expect_success();
    storm.check();
    eprintln!("{:.0?} in all", begun.elapsed());
}
