mod outage;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::FutureExt as _;

use super::*;
use crate::journal::LogFilter;
use crate::journal::{NewTask, Open};
use crate::roots;
use crate::spool;
use crate::tests::{diff, post_build};
use hookrun_config::Retry;
use hookrun_nix::event::{Event, HookKind};
use hookrun_nix::outcome::{Class, Transfer};

/// The plugins `cache` (post-build) and `mail` (diff), with scripted results.
#[derive(Default)]
struct Script {
    /// The results of `cache` in order; after the last one, every run is done.
    answers: Mutex<VecDeque<Answer>>,
    ran: Mutex<Vec<(String, String, u32)>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    transfers: Mutex<Vec<Transfer>>,
}

impl Script {
    /// Waits until this number of runs has begun.
    async fn has_run(&self, runs: usize) {
        while self.ran.lock().unwrap().len() < runs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

enum Answer {
    Outcome(Outcome),
    /// A result with progress.
    Progress(Outcome),
    Panic,
    Hang,
}

fn done() -> Outcome {
    Outcome::Done { message: "done".into(), details: vec![] }
}

fn transient() -> Outcome {
    Outcome::Failed { message: "no answer".into(), transient: true, retry_after_ms: None }
}

impl Executor for Script {
    fn settings(&self) -> config::Worker {
        config::Worker { concurrency: 2, ..config::Worker::default() }
    }

    fn wanted(&self, event: &Event) -> Vec<NewTask> {
        match event.kind() {
            HookKind::PostBuild => vec!["cache".into()],
            _ => vec!["mail".into()],
        }
    }

    fn wants(&self) -> String {
        "the same".to_owned()
    }

    fn retry(&self, _plugin: &str) -> Retry {
        let (min_delay, max_delay) = (Duration::from_millis(1), Duration::from_millis(2));
        Retry { attempts: 4, min_delay, max_delay, ..Retry::default() }
    }

    fn concurrency(&self, _plugin: &str) -> Option<usize> {
        None
    }

    fn transfers(&self) -> Vec<Transfer> {
        self.transfers.lock().unwrap().clone()
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        Vec::new()
    }

    fn refresh(&self) -> BoxFuture<'_, Refreshed> {
        async { Refreshed::default() }.boxed()
    }

    fn run<'a>(
        &'a self,
        plugin: &'a str,
        event: &'a Event,
        attempt: u32,
    ) -> BoxFuture<'a, RunReport> {
        async move {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            self.ran.lock().unwrap().push((plugin.to_owned(), event.name().to_owned(), attempt));
            let answer =
                if plugin == "cache" { self.answers.lock().unwrap().pop_front() } else { None };
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut report = RunReport::from(done());
            match answer {
                None => {}
                Some(Answer::Outcome(outcome)) => report = outcome.into(),
                Some(Answer::Progress(outcome)) => {
                    report = RunReport { progress: true, ..outcome.into() };
                }
                Some(Answer::Panic) => panic!("inside"),
                Some(Answer::Hang) => std::future::pending().await,
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            report
        }
        .boxed()
    }
}

/// A clock that waits for a thousandth of the time.
struct Hasty;

impl Clock for Hasty {
    fn now_ms(&self) -> u64 {
        hookrun_nix::event::now_ms()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration / 1000).boxed()
    }
}

/// Its time passes only while the worker waits and no plugin runs.
struct Stepped {
    now_ms: Arc<AtomicU64>,
    script: Arc<Script>,
}

impl Clock for Stepped {
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let (now_ms, script) = (Arc::clone(&self.now_ms), Arc::clone(&self.script));
        async move {
            loop {
                // Runs that have been started begin meanwhile.
                tokio::time::sleep(Duration::from_millis(1)).await;
                if script.at_once.load(Ordering::SeqCst) == 0 {
                    break;
                }
            }
            now_ms.fetch_add(millis(duration).max(1), Ordering::SeqCst);
        }
        .boxed()
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    dirs: Dirs,
    script: Arc<Script>,
}

impl Scene {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("none"), state: dir.path().to_owned() };
        let script =
            Script { answers: Mutex::new(answers.into_iter().collect()), ..Script::default() };
        Self { _dir: dir, dirs, script: Arc::new(script) }
    }

    fn put(&self, event: &Event) {
        spool::put(&self.dirs, event).unwrap();
    }

    fn run(&self, mode: Mode, stop: impl Future<Output = ()> + Send) -> (Summary, Vec<String>) {
        self.run_by(Arc::new(SystemClock), mode, stop)
    }

    fn run_by(
        &self,
        clock: Arc<dyn Clock>,
        mode: Mode,
        stop: impl Future<Output = ()> + Send,
    ) -> (Summary, Vec<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut notices = Vec::new();
        let options =
            Options { stop_limit: Duration::from_millis(20), clock, ..Options::new(mode) };
        let executor: Arc<dyn Executor> = Arc::clone(&self.script) as _;
        let summary = runtime
            .block_on(run(&self.dirs, executor, options, stop, &mut |notice| {
                notices.push(notice.to_string());
            }))
            .unwrap();
        (summary, notices)
    }

    /// Runs with a clock on which half a minute is short.
    fn run_with_polls(
        &self,
        mode: Mode,
        stop: impl Future<Output = ()> + Send,
    ) -> (Summary, Vec<String>) {
        self.run_by(Arc::new(Hasty), mode, stop)
    }

    /// Runs until no task is open, including waiting tasks.
    fn run_until_idle(&self) -> (Summary, Vec<String>) {
        self.run(Mode::Spawned { idle_exit: Duration::ZERO }, std::future::pending())
    }

    /// As [`run_until_idle`](Self::run_until_idle), by a clock that does not depend on the speed of
    /// this machine.
    fn run_in_steps(&self) -> (Summary, Vec<String>) {
        let now_ms = AtomicU64::new(hookrun_nix::event::now_ms()).into();
        let clock = Arc::new(Stepped { now_ms, script: Arc::clone(&self.script) });
        self.run_by(clock, Mode::Spawned { idle_exit: Duration::ZERO }, std::future::pending())
    }

    fn classes(&self) -> Vec<Class> {
        let journal = Journal::open_read_only(&self.dirs).unwrap().unwrap();
        journal.log(&LogFilter::default()).unwrap().into_iter().map(|row| row.class).collect()
    }
}

#[test]
fn drain_runs_all_due_tasks() {
    let scene = Scene::new([]);
    for event in [post_build("a"), post_build("b"), diff("c")] {
        scene.put(&event);
    }
    let (summary, notices) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!(
        (summary.taken, summary.attempts[&Class::Done], summary.open),
        (3, 3, Open::default())
    );
    assert_eq!(spool::depth(&scene.dirs), 0);
    assert_eq!(notices.len(), 9, "took, began, ended: {notices:?}");
    assert!(notices.contains(&"cache on a: attempt 1 done: done".to_owned()));
    let (summary, _) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!(summary, Summary::default());
}

#[test]
fn failures_are_retried_until_they_are_dead_letters() {
    let scene = Scene::new((0..4).map(|_| Answer::Outcome(transient())));
    scene.put(&post_build("a"));
    let (summary, notices) = scene.run_until_idle();
    assert_eq!(scene.classes(), [Class::Transient; 4]);
    assert_eq!((summary.open.dead, summary.open.waiting), (1, 0));
    assert_eq!(notices.last().unwrap(), "cache on a: attempt 4 transient: no answer; dead letter");
}

#[test]
fn drain_does_not_wait_for_tasks_that_are_not_due() {
    let later = Outcome::Failed {
        message: "busy".into(),
        transient: true,
        retry_after_ms: Some(3_600_000),
    };
    let scene = Scene::new([Answer::Outcome(later)]);
    scene.put(&post_build("a"));
    let (summary, _) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!((summary.open.waiting, summary.open.due), (1, 0));
}

#[test]
fn a_panic_counts_as_a_trap_and_other_tasks_continue() {
    let scene = Scene::new((0..3).map(|_| Answer::Panic));
    scene.put(&post_build("a"));
    scene.put(&diff("b"));
    let (summary, _) = scene.run_until_idle();
    assert_eq!(summary.attempts, BTreeMap::from([(Class::Done, 1), (Class::Trapped, 3)]));
    assert_eq!(summary.open.dead, 1);
}

#[test]
fn refused_tasks_keep_their_roots_and_run_when_the_next_worker_starts() {
    let scene = Scene::new([Answer::Outcome(Outcome::Refused { message: "no grant".into() })]);
    let mut event = post_build("a");
    event.nix.state = scene.dirs.state.join("nix");
    std::fs::create_dir_all(event.nix.state.join("gcroots")).unwrap();
    scene.put(&event);
    let (summary, _) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!((summary.open.refused, roots::count(&event.nix.state)), (1, 1));
    let (summary, _) = scene.run_until_idle();
    assert_eq!((summary.attempts[&Class::Done], roots::count(&event.nix.state)), (1, 0));
}

#[test]
fn refused_tasks_are_tested_one_at_a_time_until_one_succeeds() {
    let refused = || Answer::Outcome(Outcome::Refused { message: "wrong password".into() });
    // Three tasks are refused, then five tests, and the next one is not refused.
    let scene = Scene::new((0..8).map(|_| refused()));
    for name in ["a", "b", "c"] {
        scene.put(&post_build(name));
    }
    let (summary, notices) = scene.run_in_steps();
    assert_eq!(summary.attempts, BTreeMap::from([(Class::Done, 3), (Class::Refused, 8)]));
    assert_eq!(summary.open, Open::default());
    let ran = scene.script.ran.lock().unwrap();
    let tried: Vec<&str> = ran[3..8].iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(tried, ["a", "b", "c", "a", "b"], "each in its turn");
    assert!(ran.iter().all(|(.., attempt)| *attempt == 1), "none of these attempts is counted");
    assert!(
        notices.contains(
            &"cache: the cause of the refusal is fixed; 2 refused tasks run again".into()
        ),
        "{notices:?}"
    );
}

#[test]
fn attempts_that_made_progress_are_not_counted() {
    let scene = Scene::new((0..20).map(|_| Answer::Progress(transient())));
    scene.put(&post_build("a"));
    let (summary, notices) = scene.run_until_idle();
    assert_eq!(summary.attempts, BTreeMap::from([(Class::Done, 1), (Class::Transient, 20)]));
    assert!(notices.iter().any(|notice| notice.contains("not counted: it made progress")));
    assert!(
        !notices.iter().any(|notice| notice.contains("seems to be unavailable")),
        "{notices:?}"
    );
}

#[test]
fn a_stopped_worker_gives_back_attempts_that_do_not_end() {
    let scene = Scene::new([Answer::Hang]);
    scene.put(&post_build("a"));
    let script = Arc::clone(&scene.script);
    let stop = async move {
        script.has_run(1).await;
    };
    let (summary, _) = scene.run(Mode::Daemon, stop);
    assert_eq!((summary.open.due, summary.open.running), (1, 0));
    let (summary, _) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!(summary.attempts, BTreeMap::from([(Class::Done, 1)]));
    assert_eq!(
        scene.script.ran.lock().unwrap().last().unwrap().2,
        1,
        "the attempt given back is not counted"
    );
}

#[test]
fn one_plugin_does_not_take_every_slot() {
    let scene = Scene::new([]);
    for number in 0..20 {
        scene.put(&post_build(&format!("a{number}")));
    }
    scene.put(&diff("late"));
    scene.run(Mode::Drain, std::future::pending());
    let ran = scene.script.ran.lock().unwrap();
    let position = ran.iter().position(|(plugin, ..)| plugin == "mail").unwrap();
    assert!(position <= 1, "the other plugin's only task ran first or second, not {position}th");
    assert!(scene.script.most_at_once.load(Ordering::SeqCst) <= 2);
}

#[test]
fn an_event_that_arrives_while_the_worker_runs_is_taken() {
    let scene = Scene::new([]);
    let script = Arc::clone(&scene.script);
    let dirs = scene.dirs.clone();
    let stop = async move {
        // The worker runs now, because its loop polls this future.
        spool::put(&dirs, &post_build("late")).unwrap();
        script.has_run(1).await;
    };
    let (summary, _) = scene.run(Mode::Daemon, stop);
    assert_eq!(summary.attempts, BTreeMap::from([(Class::Done, 1)]));
}

#[test]
fn no_event_is_lost_if_the_journal_is_removed() {
    let scene = Scene::new([Answer::Outcome(transient()), Answer::Hang]);
    scene.put(&post_build("a"));
    let (script, dirs) = (Arc::clone(&scene.script), scene.dirs.clone());
    let stop = async move {
        script.has_run(2).await;
        std::fs::remove_dir_all(&dirs.state).unwrap();
        // Hooks create the spool again, and the worker notices that it is another directory.
        spool::put(&dirs, &post_build("b")).unwrap();
        script.has_run(4).await;
    };
    let (summary, notices) = scene.run_with_polls(Mode::Daemon, stop);
    assert!(
        notices
            .iter()
            .any(|notice| notice.contains("was removed or replaced while the worker ran")),
        "{notices:?}"
    );
    assert_eq!(summary.open.dead, 0);
    let names: Vec<String> =
        scene.script.ran.lock().unwrap().iter().map(|(_, name, _)| name.clone()).collect();
    assert_eq!(
        (
            names.iter().filter(|name| *name == "a").count(),
            names.iter().filter(|name| *name == "b").count()
        ),
        (3, 1)
    );
}

#[test]
fn a_journal_that_is_overwritten_is_replaced() {
    let scene = Scene::new([Answer::Outcome(transient()), Answer::Hang]);
    scene.put(&post_build("a"));
    let (script, dirs) = (Arc::clone(&scene.script), scene.dirs.clone());
    let stop = async move {
        script.has_run(2).await;
        let file = dirs.journal().join("journal.sqlite");
        let garbage = vec![0x55; 1 << 16];
        std::fs::write(&file, &garbage).unwrap();
        // The log is overwritten too, because otherwise SQLite would restore the file from it.
        std::fs::write(file.with_extension("sqlite-wal"), &garbage).unwrap();
        spool::put(&dirs, &post_build("b")).unwrap();
        while !script.ran.lock().unwrap().iter().any(|(_, name, _)| name == "b") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (summary, notices) = scene.run_with_polls(Mode::Daemon, stop);
    assert!(
        notices.iter().any(|notice| notice.contains("the journal was damaged (")),
        "{notices:?}"
    );
    assert_eq!((summary.open.dead, summary.open.lost), (0, 0));
    let aside = std::fs::read_dir(scene.dirs.journal()).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_string_lossy().contains(".damaged-")
    });
    assert!(aside.count() > 0);
}

#[test]
fn a_task_with_an_unreadable_event_is_lost_and_others_run() {
    let refused = Outcome::Refused { message: "no grant".into() };
    let scene = Scene::new([Answer::Outcome(refused)]);
    scene.put(&post_build("bad"));
    scene.run(Mode::Drain, std::future::pending());
    let file = scene.dirs.journal().join("journal.sqlite");
    let journal = rusqlite::Connection::open(file).unwrap();
    assert_eq!(journal.execute("UPDATE events SET body = '{'", []).unwrap(), 1);
    drop(journal);
    scene.put(&post_build("good"));
    let (summary, notices) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!((summary.attempts[&Class::Done], summary.open.lost), (1, 1));
    assert!(
        notices.iter().any(|notice| notice.contains("its event cannot be read (")),
        "{notices:?}"
    );
}

#[test]
fn a_full_spool_delays_neither_its_tasks_nor_a_request_to_stop() {
    const EVENTS: usize = 8 * intake::BATCH;
    let scene = Scene::new([]);
    hookrun_nix::layout::make_spool(&scene.dirs.spool()).unwrap();
    for number in 0..EVENTS {
        // Written without the sync of a hook.
        let event = post_build(&format!("a{number}"));
        std::fs::write(scene.dirs.spool().join(&event.id), crate::envelope::seal(&event).unwrap())
            .unwrap();
    }
    let script = Arc::clone(&scene.script);
    let stop = async move {
        while script.ran.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let (summary, _) = scene.run(Mode::Daemon, stop);
    let left = spool::depth(&scene.dirs);
    assert!(left > 0 && left < EVENTS, "{left} are left");
    assert_eq!(summary.taken, (EVENTS - left) as u64);
    assert!(summary.open.due > 0);
    let first = scene.script.ran.lock().unwrap()[0].1.clone();
    assert_eq!(first, "a0", "the oldest begins");
    let (summary, _) = scene.run(Mode::Drain, std::future::pending());
    assert_eq!((summary.taken, summary.open), (left as u64, Open::default()));
    let names: BTreeSet<String> =
        scene.script.ran.lock().unwrap().iter().map(|(_, name, _)| name.clone()).collect();
    assert_eq!(names.len(), EVENTS);
}

#[test]
fn uploads_in_progress_are_stored_for_status() {
    let scene = Scene::new([Answer::Hang]);
    let transfer = Transfer {
        path: "/nix/store/a".into(),
        store: "cache".into(),
        bytes: 5,
        nar_size: 9,
        since_ms: 1,
    };
    scene.script.transfers.lock().unwrap().push(transfer.clone());
    scene.put(&post_build("alpha"));
    let pid = i32::try_from(std::process::id()).unwrap();
    let shown = || WorkerState::of(&scene.dirs, pid).map(|state| state.transfers);
    let stop = async {
        while shown() != Some(vec![transfer.clone()]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_mins(1);
    let mut in_time = false;
    scene.run(Mode::Daemon, async {
        in_time = tokio::time::timeout(limit, stop).await.is_ok();
    });
    assert!(in_time, "{:?}", shown());
}
