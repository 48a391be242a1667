//! A service that is down for a day, with a simulated clock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::super::*;
use crate::journal::{Incoming, NewTask};
use crate::tests::post_build;
use hookrun_config::Retry;
use hookrun_nix::event::Event;

const HOUR_MS: u64 = 3_600_000;
/// The service is available again at this time.
const END_OF_OUTAGE: u64 = 24 * HOUR_MS;

/// A clock that advances only when all tasks wait.
struct Simulated(Arc<AtomicU64>);

impl Clock for Simulated {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let now = Arc::clone(&self.0);
        async move {
            // Lets other futures that are ready run first.
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
            now.fetch_add(millis(duration).max(1), Ordering::SeqCst);
        }
        .boxed()
    }
}

/// A plugin whose service is down for a day.
struct Outage {
    now: Arc<AtomicU64>,
    attempts_down: AtomicU64,
    done: Mutex<Vec<String>>,
    turns: AtomicU64,
    over: AtomicBool,
}

impl Executor for Outage {
    fn settings(&self) -> config::Worker {
        self.turns.fetch_add(1, Ordering::SeqCst);
        config::Worker::default()
    }

    fn wanted(&self, _event: &Event) -> Vec<NewTask> {
        vec!["cache".into()]
    }

    fn wants(&self) -> String {
        "the same".to_owned()
    }

    fn retry(&self, _plugin: &str) -> Retry {
        Retry::default()
    }

    fn concurrency(&self, _plugin: &str) -> Option<usize> {
        None
    }

    fn run<'a>(
        &'a self,
        _plugin: &'a str,
        event: &'a Event,
        _attempt: u32,
    ) -> BoxFuture<'a, RunReport> {
        async move {
            tokio::task::yield_now().await;
            let outcome = if self.now.load(Ordering::SeqCst) < END_OF_OUTAGE {
                self.attempts_down.fetch_add(1, Ordering::SeqCst);
                Outcome::Failed {
                    message: "connection refused".into(),
                    transient: true,
                    retry_after_ms: None,
                }
            } else {
                self.done.lock().unwrap().push(event.id.clone());
                self.over.store(true, Ordering::SeqCst);
                Outcome::Done { message: "done".into(), details: vec![] }
            };
            outcome.into()
        }
        .boxed()
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        Vec::new()
    }

    fn refresh(&self) -> BoxFuture<'_, Refreshed> {
        async { Refreshed::default() }.boxed()
    }
}

/// Runs `count` tasks through a day without the service. Returns the number of attempts during that
/// day, and the order in which the tasks were done.
fn a_day_down(count: usize) -> (u64, Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs { config: dir.path().join("none"), state: dir.path().to_owned() };
    let now = Arc::new(AtomicU64::new(1));
    let events: Vec<Event> =
        (0..count).map(|number| post_build(&format!("package-{number}"))).collect();
    {
        let (mut journal, _) = Journal::open(&dirs).unwrap();
        for batch in events.chunks(1000) {
            let rows: Vec<Incoming<'_>> = batch
                .iter()
                .map(|event| Incoming { event, uid: 0, plugins: vec!["cache".into()], rooted: 0 })
                .collect();
            journal.take(&rows, 1).unwrap();
        }
    }
    let outage = Arc::new(Outage {
        now: Arc::clone(&now),
        attempts_down: AtomicU64::new(0),
        done: Mutex::default(),
        turns: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let mode = Mode::Spawned { idle_exit: Duration::ZERO };
    let options = Options { clock: Arc::new(Simulated(now)), ..Options::new(mode) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let executor: Arc<dyn Executor> = Arc::clone(&outage) as _;
    let summary = runtime
        .block_on(run(&dirs, executor, options, std::future::pending(), &mut |_| ()))
        .unwrap();
    assert_eq!((summary.open.dead, summary.open.due, summary.open.waiting), (0, 0, 0));
    let mut ids: Vec<String> = events.into_iter().map(|event| event.id).collect();
    ids.sort();
    let done = std::mem::take(&mut *outage.done.lock().unwrap());
    (outage.attempts_down.load(Ordering::SeqCst), done, ids)
}

/// Checks that the probe comes first, and then all tasks in the order of their events, except for
/// those that run concurrently.
fn assert_in_order(done: &[String], ids: &[String]) {
    let concurrency = config::Worker::default().concurrency;
    for (place, id) in done.iter().enumerate().skip(1) {
        let rightful = ids.binary_search(id).unwrap();
        assert!(
            place.abs_diff(rightful) <= concurrency + 1,
            "the {rightful}th was done as {place}th"
        );
    }
}

#[test]
fn one_task_survives_a_day() {
    let (attempts, done, ids) = a_day_down(1);
    assert_eq!(done, ids);
    assert!(
        (96..300).contains(&attempts),
        "about one attempt every quarter of an hour: {attempts}"
    );
}

#[test]
fn many_tasks_survive_a_day_and_are_done_in_order() {
    let (attempts, done, ids) = a_day_down(1000);
    assert_eq!(done.len(), ids.len());
    assert!((96..300).contains(&attempts), "one at a time: {attempts}");
    assert_in_order(&done, &ids);
}

/// Takes half a minute; run it with `cargo nextest run --run-ignored all -E
/// 'test(a_hundred_thousand)'`.
#[test]
#[ignore = "takes half a minute; run by `cargo xtask crash`"]
fn a_hundred_thousand_tasks_survive_a_day() {
    let (attempts, done, ids) = a_day_down(100_000);
    assert_eq!(done.len(), ids.len());
    assert!((96..300).contains(&attempts), "one at a time: {attempts}");
    assert_in_order(&done, &ids);
}
