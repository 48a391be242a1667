//! The queue's promise under SIGKILL: what a hook has handed over ends exactly once in the journal,
//! nothing is lost, and the plugin has seen it at least once, whenever hooks and workers are
//! killed: at every boundary of both (each `fsync`, `rename` and their like, before and after), and
//! at random moments while 100 hooks run at once.
//!
//! `cargo xtask crash --events 10000 --kills 1000` runs the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;
use hookrun_nix::outcome::Class;
use hookrun_queue::journal::{Journal, LogFilter, TaskState};
use hookrun_queue::spool;
use hookrun_tests::guests;
use hookrun_tests::lab::{Boundary, Point, Ran, Scene};

/// Hook processes at once.
const HOOKS: usize = 100;
/// SIGKILL.
const KILLED: Option<i32> = Some(9);
/// The longest life of a worker before it is killed: it begins, takes and runs within this, also on
/// a machine under load.
const WORKER_LIFE: Duration = Duration::from_secs(2);
/// Of so many kills one at least is a worker's.
const KILLS_PER_WORKER: usize = 10;
/// A hook's life is a few milliseconds.
const HOOK_LIFE: Duration = Duration::from_millis(8);

#[test]
fn killed_at_every_boundary_and_at_random() {
    crash(300, 130);
}

#[test]
#[ignore = "takes minutes: `cargo xtask crash` runs it"]
fn killed_at_random_for_long() {
    let number = |name: &str, default| {
        std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
    };
    crash(number("HOOKRUN_CRASH_EVENTS", 10_000), number("HOOKRUN_CRASH_KILLS", 1000));
}

/// A random part of `whole`.
fn part_of(whole: Duration, chance: &mut fastrand::Rng) -> Duration {
    whole.mul_f64(chance.f64())
}

/// A scene, and what became of the hooks in it.
struct Storm {
    scene: Scene,
    boundary: Boundary,
    next: AtomicUsize,
    /// Numbers of events whose hook returned 0.
    handed_over: Mutex<BTreeSet<usize>>,
    /// Numbers of events whose hook was killed: there or not, but not twice.
    perhaps: Mutex<BTreeSet<usize>>,
    /// What hooks said that could not hand over, as after two seconds on a machine under load:
    /// these count as killed ones.
    given_up: Mutex<Vec<String>>,
}

impl Storm {
    fn new() -> Self {
        let guest = guests::guest("good").unwrap();
        let mut config = "[worker]\nstart = \"none\"\nroots-max-age = \"1h\"\n".to_owned();
        for (plugin, digit) in plugins() {
            write!(
                config,
                "[plugins.{plugin}]\nsource = \"{}\"\nhooks = [\"post-build\"]\nfilter = {{ name = \"*{digit}\" }}\n\
                 grant = {{ state = true }}\nlimits = {{ state-keys = 100000, state-bytes = \"64MiB\" }}\n",
                guest.display()
            )
            .unwrap();
        }
        let scene = Scene::new().config(&config);
        scene.hookrun(&["compile"]).expect_success();
        // Nix makes it with its first build; here nothing is built.
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

    /// A hook for a build of its own, and the build's number.
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

    /// Notes how a hook ended; true if it, or the process that does its work, was killed.
    fn ended(&self, number: usize, child: &mut Child) -> bool {
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        if status.signal() == KILLED {
            self.perhaps.lock().unwrap().insert(number);
            return true;
        }
        assert!(status.success(), "a hook fails no build: {status}");
        let killed = said.contains("ended early");
        if said.contains("may be lost") || said.contains("is lost") {
            self.perhaps.lock().unwrap().insert(number);
            if !killed {
                self.given_up.lock().unwrap().push(said);
            }
        } else {
            // By itself, or by a process that came after it.
            self.handed_over.lock().unwrap().insert(number);
        }
        killed
    }

    /// Hands over `count` events, undisturbed.
    fn hand_over(&self, count: usize) {
        for _ in 0..count {
            let (number, mut command) = self.hook();
            assert!(!self.ended(number, &mut command.spawn().unwrap()));
        }
    }

    fn kept(&self) -> usize {
        self.handed_over.lock().unwrap().len()
    }

    /// Kills hooks and workers once before and once after each of their boundaries. Gives the
    /// number of kills.
    fn every_boundary(&self) -> usize {
        // The first one makes directories.
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
        // Undisturbed: it makes the journal and takes what the killed hooks have left in fallback
        // directories, which no later worker has to do.
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
        // A later worker may have less to do, such as no new journal to make.
        assert!(survived.len() < of_worker.len(), "not reached: {survived:?} of {of_worker:?}");
        eprintln!(
            "boundaries: hook {of_hook:?}, worker {} ({synced} syncs), {kills} kills, not reached {survived:?}",
            of_worker.len()
        );
        kills
    }

    /// Hands over until `events` are kept, by [`HOOKS`] hooks at once, while hooks and workers are
    /// killed `kills` times.
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
                    // One in four dies at a boundary that chance chooses.
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
                            // As many as are needed, spread over all events; workers take their
                            // part.
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

    /// What has to hold once an undisturbed worker has drained the queue.
    fn check(&self) {
        let dirs = Dirs { config: self.scene.config_path(), state: self.scene.state_dir() };
        for fallback in layout::fallbacks(&dirs) {
            assert_eq!(spool::count(&fallback), 0, "nothing is left in {}", fallback.display());
            // One of them is not in the scene.
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
                "{name}: not once, or lost"
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
        // What killed hooks and workers left behind is swept later than `roots-max-age`.
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

/// The plugins, each with the last digit of the names that it gets: a run reads all that its plugin
/// has stored.
fn plugins() -> impl Iterator<Item = (String, u8)> {
    (0..10).map(|digit| (format!("keeper-{digit}"), digit))
}

fn name(number: usize) -> String {
    format!("crash-{number}")
}

/// Before and after each of so many boundaries.
fn points(count: usize) -> impl Iterator<Item = Point> {
    (1..=count).flat_map(|number| [false, true].map(|after| Point { number, after }))
}

/// The keys that the plugin has written: one for each derivation that it has seen.
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
