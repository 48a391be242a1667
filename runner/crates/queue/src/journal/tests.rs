use std::path::Path;

use super::*;
use crate::retry::{Next, Uncounted};
use crate::tests::{diff, post_build};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, Origin};
use hookrun_nix::outcome::{Class, LogLine, Outcome, RunReport, Usage};

struct Scene {
    dir: tempfile::TempDir,
    dirs: Dirs,
    journal: Journal,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("none"), state: dir.path().to_owned() };
        let (journal, notice) = Journal::open(&dirs).unwrap();
        assert_eq!(notice, None);
        Self { dir, dirs, journal }
    }

    /// Returns another worker, after a change of the file.
    fn reopen(self, meanwhile: impl FnOnce(&Path)) -> (Self, Option<Damage>) {
        let Self { dir, dirs, journal } = self;
        drop(journal);
        meanwhile(&dirs.journal().join(FILE));
        let (journal, notice) = Journal::open(&dirs).unwrap();
        (Self { dir, dirs, journal }, notice)
    }

    fn take(&mut self, event: &Event, plugins: &[&str]) -> IngestResult {
        self.take_wanted(event, plugins.iter().map(|plugin| NewTask::from(*plugin)).collect())
    }

    fn take_wanted(&mut self, event: &Event, plugins: Vec<NewTask>) -> IngestResult {
        self.journal
            .take(&[Incoming { event, uid: 0, plugins, rooted: 1 }], 1000)
            .unwrap()
            .remove(0)
    }

    fn begin(&mut self, event: &Event, plugin: &str, now: u64) -> Option<u32> {
        let task = Task { plugin: plugin.into(), event: event.clone() };
        self.journal.step(&[], &[task], now).unwrap().1.remove(0).map(|begun| begun.number)
    }

    fn due(&self, plugin: &str, now: u64) -> Vec<String> {
        let tasks = self.journal.due(plugin, now, 99, DueOrder::Oldest).unwrap().0;
        tasks.into_iter().map(|task| task.event.name().to_owned()).collect()
    }

    fn attempt(&mut self, event: &Event, plugin: &str, outcome: Outcome, next: Next) -> bool {
        // The task may run whatever it was waiting for.
        let number = self.begin(event, plugin, 1_000_000).unwrap();
        let log = vec![LogLine { level: "info".into(), message: "said".into(), fields: vec![] }];
        let report =
            RunReport { usage: Usage { memory: 65536, ..Usage::default() }, log, ..outcome.into() };
        let attempt = Attempt { event: &event.id, plugin, number, start_ms: 2000, end_ms: 2500 };
        self.journal
            .step(&[EndedAttempt { attempt, report: &report, next, age_ms: 0 }], &[], 2500)
            .unwrap()
            .0
            .remove(0)
    }

    fn states(&self) -> Vec<(String, String)> {
        let mut statement = self
            .journal
            .connection
            .prepare("SELECT plugin, state FROM tasks ORDER BY event, plugin")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

fn done() -> Outcome {
    Outcome::Done { message: "uploaded".into(), details: vec![] }
}

fn failed() -> Outcome {
    Outcome::Failed { message: "no answer".into(), transient: true, retry_after_ms: None }
}

#[test]
fn an_event_is_taken_tried_and_ended() {
    let mut scene = Scene::new();
    let event = post_build("hello-1.0");
    assert_eq!(scene.take(&event, &["cache", "mail"]), IngestResult::New(2));
    assert_eq!(
        scene.take(&event, &["cache", "mail"]),
        IngestResult::Known { ended: false },
        "the worker was killed before it removed the spool file"
    );
    assert_eq!(scene.journal.due_plugins(1000).unwrap(), ["cache", "mail"]);
    assert_eq!(
        scene.journal.due("cache", 1000, 9, DueOrder::LongestDue).unwrap().0,
        [Task { plugin: "cache".into(), event: event.clone() }]
    );

    assert!(!scene.attempt(
        &event,
        "cache",
        failed(),
        Next::Retry { after: Duration::from_secs(1) }
    ));
    assert_eq!(scene.journal.due_plugins(3499).unwrap(), ["mail"], "not before its time");
    assert_eq!(scene.journal.next_due(3000).unwrap(), Some(3500));
    assert_eq!(scene.journal.due_plugins(3500).unwrap(), ["cache", "mail"]);
    assert!(!scene.attempt(&event, "mail", done(), Next::Done));
    assert!(scene.attempt(&event, "cache", done(), Next::Done), "the last task ends the event");
    assert_eq!(scene.take(&event, &[]), IngestResult::Known { ended: true });

    let rows = scene
        .journal
        .log(&LogFilter { plugin: Some("cache".into()), ..LogFilter::default() })
        .unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (row.number, row.class.as_str(), row.message.as_str(), row.state.as_str()))
        .collect();
    assert_eq!(shown, [(1, "transient", "no answer", "done"), (2, "done", "uploaded", "done")]);
    assert_eq!(rows[0].usage.as_ref().unwrap().memory, 65536);
    assert_eq!(rows[0].log[0].message, "said");
}

#[test]
fn attempts_are_filtered_and_tasks_are_counted() {
    let mut scene = Scene::new();
    let (a, b) = (post_build("alpha"), diff("beta"));
    scene.take(&a, &["cache"]);
    scene.take(&b, &["mail"]);
    scene.attempt(&a, "cache", failed(), Next::Retry { after: Duration::from_secs(9) });
    scene.attempt(&b, "mail", failed(), Next::Dead);
    let names = |filter: LogFilter| {
        scene
            .journal
            .log(&filter)
            .unwrap()
            .into_iter()
            .map(|row| row.event.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(LogFilter::default()), ["alpha", "beta"]);
    assert_eq!(names(LogFilter { limit: Some(1), ..LogFilter::default() }), ["beta"], "the newest");
    assert_eq!(
        names(LogFilter { derivation: Some("alph".into()), ..LogFilter::default() }),
        ["alpha"]
    );
    assert_eq!(
        names(LogFilter { derivation: Some(b.drv_path().into()), ..LogFilter::default() }),
        ["beta"]
    );
    assert_eq!(
        names(LogFilter { outcome: Some(EndedAs::Class(Class::Done)), ..LogFilter::default() }),
        Vec::<String>::new()
    );
    assert_eq!(
        names(LogFilter { since_ms: Some(2501), ..LogFilter::default() }),
        Vec::<String>::new()
    );

    let counts = scene.journal.counts(3000).unwrap();
    let cache = PluginCounts {
        plugin: "cache".into(),
        waiting: 1,
        oldest_ms: Some(a.time_ms),
        next_ms: Some(11_500),
        ..Default::default()
    };
    assert_eq!(
        counts,
        [cache, PluginCounts { plugin: "mail".into(), dead: 1, ..Default::default() }]
    );
    let open = Open { waiting: 1, dead: 1, next_ms: Some(11_500), ..Open::default() };
    assert_eq!(scene.journal.open_tasks(3000).unwrap(), open);
    let dead = scene.journal.tasks_in_state(&[TaskState::Dead], 9).unwrap();
    assert_eq!(
        (dead[0].event.name.as_str(), dead[0].message.as_deref()),
        ("beta", Some("no answer"))
    );
    let reader = Journal::open_read_only(&scene.dirs).unwrap().unwrap();
    assert_eq!(reader.counts(3000).unwrap(), counts, "while the worker runs");
}

#[test]
fn equal_events_are_merged() {
    let mut scene = Scene::new();
    let (first, second, third) = (post_build("a"), post_build("a"), post_build("a"));
    scene.take(&first, &["cache"]);
    assert_eq!(scene.take(&second, &["cache"]), IngestResult::Merged(first.id.clone()));
    assert_eq!(scene.take(&post_build("b"), &["cache"]), IngestResult::New(1));
    scene.attempt(&first, "cache", done(), Next::Done);
    assert_eq!(
        scene.take(&third, &["cache"]),
        IngestResult::New(1),
        "a later build is a new event"
    );
}

#[test]
fn an_attempt_of_a_killed_worker_is_counted() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache", "mail", "other"]);
    scene.begin(&event, "cache", 2000).unwrap();
    scene.begin(&event, "other", 2000).unwrap();
    scene.journal.give_back(&event.id, "other", 2001).unwrap();
    scene.attempt(
        &event,
        "mail",
        Outcome::Refused { message: "no grant".into() },
        Next::Refused { after: Duration::from_mins(5) },
    );
    let (mut scene, _) = scene.reopen(|_| ());
    let states =
        |scene: &Scene| scene.states().into_iter().map(|(_, state)| state).collect::<Vec<_>>();
    assert_eq!(states(&scene), ["running", "refused", "pending"]);
    assert_eq!((scene.journal.resume(5000).unwrap(), scene.journal.readmit(None).unwrap()), (1, 1));
    assert_eq!(states(&scene), ["pending", "pending", "pending"]);
    assert_eq!(scene.begin(&event, "cache", 6000), Some(2));
    assert_eq!(
        scene.begin(&event, "other", 6000),
        Some(1),
        "the attempt was given back and not counted"
    );
    let rows = scene
        .journal
        .log(&LogFilter {
            outcome: Some(EndedAs::Class(Class::Interrupted)),
            ..LogFilter::default()
        })
        .unwrap();
    assert_eq!(
        (rows.len(), rows[0].start_ms, rows[0].end_ms, rows[0].usage.is_none()),
        (1, 2000, 5000, true)
    );
}

#[test]
fn old_events_are_removed_and_dead_letters_are_kept() {
    let mut scene = Scene::new();
    let (ended, dead, open) = (post_build("a"), post_build("b"), post_build("c"));
    for event in [&ended, &dead, &open] {
        scene.take(event, &["cache"]);
    }
    scene.attempt(&ended, "cache", done(), Next::Done);
    scene.attempt(&dead, "cache", failed(), Next::Dead);
    let keep = Duration::from_hours(1);
    scene.journal.forget(keep, 2500 + 3_600_000).unwrap();
    assert_eq!(scene.states().len(), 3);
    scene.journal.forget(keep, 2500 + 3_600_000 + 1).unwrap();
    assert_eq!(scene.states().len(), 2);
    assert_eq!(scene.journal.log(&LogFilter::default()).unwrap().len(), 1);
}

#[test]
fn ended_events_of_build_users_are_limited_and_those_of_root_are_not() {
    const BUILD_USER: u32 = 30001;
    let mut scene = Scene::new();
    let names = |scene: &Scene| -> Vec<String> {
        let rows = scene.journal.log(&LogFilter::default()).unwrap();
        rows.into_iter().map(|row| row.event.name).collect()
    };
    for (uid, name) in [(0, "root-1"), (0, "root-2"), (BUILD_USER, "a"), (BUILD_USER, "b")] {
        let event = diff(name);
        let plugins = vec![NewTask::from("mail")];
        scene.journal.take(&[Incoming { event: &event, uid, plugins, rooted: 0 }], 1000).unwrap();
        assert_eq!(scene.journal.share(BUILD_USER).unwrap().events, u64::from(uid == BUILD_USER));
        scene.attempt(&event, "mail", done(), Next::Done);
    }
    assert_eq!(
        scene.journal.share(BUILD_USER).unwrap(),
        Share::default(),
        "ended events do not count"
    );
    assert_eq!(scene.journal.forget_beyond(1, 0).unwrap(), 1);
    let mut left = names(&scene);
    left.sort();
    assert_eq!(left, ["b", "root-1", "root-2"]);
}

#[test]
fn a_damaged_journal_is_replaced() {
    let scene = Scene::new();
    let damage = "this is not a database, but it is long enough to be read as one".repeat(99);
    let (mut scene, notice) = scene.reopen(|file| std::fs::write(file, damage).unwrap());
    let Damage { notice, salvaged } = notice.unwrap();
    assert!(
        notice.starts_with("the journal was damaged (file is not a database) and was renamed to "),
        "{notice}"
    );
    assert_eq!(salvaged, []);
    assert_eq!(scene.take(&post_build("a"), &["cache"]), IngestResult::New(1));
    let aside = std::fs::read_dir(scene.dirs.journal())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"));
    assert_eq!(aside.count(), 1);
}

#[test]
fn readable_events_of_a_damaged_journal_are_taken_again() {
    let mut scene = Scene::new();
    let events: Vec<Event> = (0..400).map(|number| post_build(&format!("a{number}"))).collect();
    for event in &events {
        scene.take(event, &["cache"]);
    }
    scene.attempt(&events[0], "cache", done(), Next::Done);
    let page = |file: &Path| {
        use std::os::unix::fs::FileExt as _;
        Connection::open(file)
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        let size = std::fs::metadata(file).unwrap().len();
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all_at(&[0xff; 8192], size / 2).unwrap();
    };
    let (scene, damage) = scene.reopen(page);
    let salvaged = damage.unwrap().salvaged;
    assert!(!salvaged.contains(&events[0]), "it had ended");
    assert!(salvaged.len() > 200, "two pages of many: {} are left", salvaged.len());
    assert!(salvaged.iter().all(|event| events.contains(event)));
    assert!(scene.journal.is_in_place());
    std::fs::remove_file(scene.dirs.journal().join(FILE)).unwrap();
    assert!(!scene.journal.is_in_place());
}

#[test]
fn tasks_wait_for_the_tasks_of_their_dependencies() {
    let mut scene = Scene::new();
    let (lib, app, other) = (post_build("lib"), post_build("app"), post_build("other"));
    let after = |events: &[&Event]| {
        let paths =
            events.iter().flat_map(|event| event.output_paths()).map(ToOwned::to_owned).collect();
        vec![NewTask { plugin: "cache".into(), after: Some(paths) }]
    };
    scene.take_wanted(&lib, after(&[]));
    scene.take_wanted(&app, after(&[&lib]));
    scene.take_wanted(&other, after(&[]));
    assert_eq!(scene.due("cache", 2000), ["lib", "other"]);
    assert_eq!(
        scene.journal.open_tasks(2000).unwrap(),
        Open { due: 2, waiting: 1, ..Open::default() }
    );
    scene.attempt(&lib, "cache", failed(), Next::Retry { after: Duration::from_secs(9) });
    assert_eq!(scene.due("cache", 2500), ["other"], "it also waits for another attempt");
    assert_eq!(scene.begin(&lib, "cache", 11_500), Some(2));
    let attempt =
        Attempt { event: &lib.id, plugin: "cache", number: 2, start_ms: 0, end_ms: 12_000 };
    let report = RunReport::from(done());
    scene
        .journal
        .step(
            &[EndedAttempt { attempt, report: &report, next: Next::Done, age_ms: 0 }],
            &[],
            12_000,
        )
        .unwrap();
    assert_eq!(scene.due("cache", 12_000), ["app", "other"]);
    // The task for which no other waits any longer.
    let later = post_build("later");
    scene.take_wanted(&later, after(&[&lib, &app]));
    scene.journal.discard(&app.id, "cache", 1).unwrap();
    assert_eq!(scene.due("cache", 12_000), ["other", "later"], "a dropped task blocks no other");
}

#[test]
fn a_task_that_was_removed_meanwhile_does_not_begin() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache"]);
    scene.attempt(&event, "cache", failed(), Next::Retry { after: Duration::from_secs(9) });
    assert_eq!(scene.begin(&event, "cache", 3000), None, "not before its time");
    assert_eq!(scene.journal.discard(&event.id, "cache", 3000).unwrap(), (true, true));
    assert_eq!(scene.begin(&event, "cache", 99_000), None);
}

#[test]
fn attempts_are_uncounted_and_rescheduled_after_the_clock_was_set_back() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache"]);
    let hour = 3_600_000;
    assert_eq!(scene.begin(&event, "cache", 2 * hour), Some(1));
    let attempt = Attempt {
        event: &event.id,
        plugin: "cache",
        number: 1,
        start_ms: 2 * hour,
        end_ms: 2 * hour,
    };
    let report = RunReport::from(failed());
    let next = Next::Again { after: Duration::from_mins(5), why: Uncounted::Outage };
    scene
        .journal
        .step(&[EndedAttempt { attempt, report: &report, next, age_ms: 0 }], &[], 2 * hour)
        .unwrap();
    assert_eq!(scene.journal.next_due(2 * hour).unwrap(), Some(2 * hour + 300_000));
    assert_eq!(scene.journal.clock_was_set(2 * hour, 5000).unwrap(), 0);
    assert_eq!(scene.journal.clock_was_set(hour, 5000).unwrap(), 1);
    assert_eq!(scene.journal.next_due(hour).unwrap(), Some(hour + 300_000));
    assert_eq!(
        scene.begin(&event, "cache", hour + 300_000),
        Some(1),
        "the attempt was not counted"
    );
}

#[test]
fn an_open_breaker_survives_the_worker_until_the_operator_closes_it() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache"]);
    scene.attempt(
        &event,
        "cache",
        failed(),
        Next::Again { after: Duration::from_mins(10), why: Uncounted::Outage },
    );
    let breaker = OpenBreaker {
        plugin: "cache".into(),
        since_ms: 1,
        until_ms: 9000,
        trips: 2,
        message: "down".into(),
    };
    scene.journal.keep_breaker(&breaker).unwrap();
    let (mut scene, _) = scene.reopen(|_| ());
    assert_eq!(scene.journal.breakers().unwrap(), std::slice::from_ref(&breaker));
    scene.journal.close_breaker("cache", 1500).unwrap();
    assert_eq!(scene.due("cache", 1500), ["a"], "immediately after it closes");
    scene.attempt(&event, "cache", failed(), Next::Dead);
    scene.journal.keep_breaker(&breaker).unwrap();
    assert!(scene.journal.revive(&event.id, "cache", 4000).unwrap());
    assert!(scene.journal.close_breaker("cache", 4000).unwrap());
    assert_eq!(scene.journal.breakers().unwrap(), []);
}

#[test]
fn shares_of_users_and_roots_are_counted() {
    let mut scene = Scene::new();
    let (mine, theirs) = (post_build("a"), diff("b"));
    scene.take(&mine, &["cache"]);
    scene
        .journal
        .take(
            &[Incoming { event: &theirs, uid: 30001, plugins: vec!["mail".into()], rooted: 0 }],
            1,
        )
        .unwrap();
    let bytes = serde_json::to_string(&theirs).unwrap().len() as u64;
    assert_eq!(scene.journal.share(30001).unwrap(), Share { events: 1, bytes });
    assert_eq!(scene.journal.share(30002).unwrap(), Share::default());
    assert_eq!(scene.journal.roots().unwrap(), Roots { count: 1, bytes: 0, ..Roots::default() });
    scene.journal.measured(&[(mine.id.clone(), 77)]).unwrap();
    assert_eq!(scene.journal.roots().unwrap(), Roots { count: 1, bytes: 77, ..Roots::default() });
    assert_eq!(scene.journal.rooted_stores().unwrap(), std::slice::from_ref(&mine.nix));
    assert_eq!(
        (scene.journal.is_rooted(&mine.id).unwrap(), scene.journal.is_rooted("x").unwrap()),
        (Some(true), None)
    );
    scene.journal.unrooted(&mine.id).unwrap();
    assert_eq!(scene.journal.roots().unwrap(), Roots::default());
    assert_eq!(scene.journal.is_rooted(&mine.id).unwrap(), Some(false));
}

#[test]
fn roots_are_limited_by_age_and_size() {
    let mut scene = Scene::new();
    let events = ["old", "mid", "unknown", "new"].map(post_build);
    for (event, taken_ms) in events.iter().zip([100, 700, 800, 900]) {
        let incoming = Incoming { event, uid: 0, plugins: vec!["cache".into()], rooted: 1 };
        scene.journal.take(&[incoming], taken_ms).unwrap();
    }
    assert_eq!(scene.journal.unmeasured(9).unwrap().len(), 4);
    let sizes = [(0, 1), (1, 50), (3, 60)]
        .map(|(number, size): (usize, u64)| (events[number].id.clone(), size));
    scene.journal.measured(&sizes).unwrap();
    assert_eq!(scene.journal.unmeasured(9).unwrap(), [events[2].clone()]);
    let beyond = |before, size| {
        let mut beyond = scene.journal.rooted_beyond(before, size).unwrap();
        beyond.sort_by(|a, b| a.1.id.cmp(&b.1.id));
        beyond.into_iter().map(|(old, event)| (old, event.name().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(beyond(0, 1000), []);
    assert_eq!(beyond(500, 1000), [(true, "old".to_owned())]);
    assert_eq!(
        beyond(500, 100),
        [(true, "old".to_owned()), (false, "mid".to_owned())],
        "the newest are kept"
    );
}

#[test]
fn a_journal_of_a_later_release_is_refused() {
    let scene = Scene::new();
    scene.journal.connection.pragma_update(None, "user_version", 9).unwrap();
    for error in
        [Journal::open(&scene.dirs).map(|_| ()), Journal::open_read_only(&scene.dirs).map(|_| ())]
    {
        let error = error
            .unwrap_err()
            .to_string()
            .replace(&scene.dirs.state.display().to_string(), "STATE");
        insta::allow_duplicates! {
            insta::assert_snapshot!(error, @"the journal STATE/journal/journal.sqlite has version 9, but this hookrun reads versions up to 1; install the newer hookrun that wrote it");
        }
    }
}

#[test]
fn the_source_of_an_event_is_stored_and_is_a_hook_if_missing() {
    let mut scene = Scene::new();
    let old = post_build("old");
    let synced = Event { origin: Origin::Sync, ..post_build("synced") };
    for event in [&old, &synced, &post_build("told")] {
        scene.take(event, &["cache"]);
    }
    scene.attempt(&synced, "cache", done(), Next::Done);
    let (scene, _) = scene.reopen(|path| {
        let journal = rusqlite::Connection::open(path).unwrap();
        // The form that an earlier release wrote.
        let written = "UPDATE events SET body = json_remove(body, '$.origin') WHERE id = ?1";
        assert_eq!(journal.execute(written, [&old.id]).unwrap(), 1);
    });
    assert_eq!(scene.journal.event(&old.id).unwrap(), Some(old));
    let told = |rows: Vec<TaskRow>| {
        rows.into_iter().map(|row| (row.event.name, row.event.origin)).collect::<Vec<_>>()
    };
    let expected = [("old", "hook"), ("synced", "sync"), ("told", "hook")];
    let expected = expected.map(|(name, origin)| (name.to_owned(), origin.to_owned()));
    assert_eq!(told(scene.journal.tasks().unwrap()), expected);
    let log = scene.journal.log(&LogFilter::default()).unwrap();
    assert_eq!(log.into_iter().map(|row| row.event.origin).collect::<Vec<_>>(), ["sync"]);
}

#[test]
fn roots_of_dead_letters_are_released_before_those_of_open_tasks() {
    let mut scene = Scene::new();
    let (dead, open, done_one) = (post_build("dead"), post_build("open"), post_build("done"));
    for event in [&dead, &open, &done_one] {
        scene.take(event, &["cache"]);
    }
    assert!(scene.attempt(&done_one, "cache", done(), Next::Done), "its roots may be removed");
    assert!(!scene.attempt(&dead, "cache", failed(), Next::Dead), "its roots are kept");
    scene.journal.measured(&[(dead.id.clone(), 70), (open.id.clone(), 60)]).unwrap();
    assert_eq!(
        scene.journal.roots().unwrap(),
        Roots { count: 2, bytes: 130, dead_count: 1, dead_bytes: 70 }
    );
    assert_eq!(scene.journal.is_rooted(&dead.id).unwrap(), Some(true));
    let beyond: Vec<String> = scene
        .journal
        .rooted_beyond(0, 100)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event.name().to_owned())
        .collect();
    assert_eq!(beyond, ["dead"]);
    assert!(scene.journal.revive(&dead.id, "cache", 3000).unwrap());
    assert!(scene.attempt(&dead, "cache", done(), Next::Done), "now they may be removed");
    assert_eq!(scene.journal.roots().unwrap().count, 1);
}

#[test]
fn a_lost_task_can_be_retried() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache"]);
    let lost = Outcome::Lost { message: "it was removed".into() };
    assert!(scene.attempt(&event, "cache", lost, Next::Lost), "no roots are needed");
    let open = scene.journal.open_tasks(3000).unwrap();
    assert_eq!((open.lost, open.dead, open.failed()), (1, 0, true));
    let row = scene.journal.tasks().unwrap().remove(0);
    assert_eq!((row.state.as_str(), row.class), ("lost", Some(Class::Lost)));
    assert!(scene.journal.outputs_for("cache").unwrap().is_empty(), "`sync` may queue it");
    assert!(scene.journal.revive(&event.id, "cache", 3000).unwrap());
    assert_eq!(scene.due("cache", 3000), ["a"]);
}

#[test]
fn tasks_of_a_plugin_with_an_open_breaker_wait_in_every_view() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache"]);
    let until_ms = hookrun_nix::event::now_ms() + 3_600_000;
    let breaker = OpenBreaker {
        plugin: "cache".into(),
        since_ms: 1,
        until_ms,
        trips: 0,
        message: "down".into(),
    };
    scene.journal.keep_breaker(&breaker).unwrap();
    let open = scene.journal.open_tasks(3000).unwrap();
    assert_eq!((open.due, open.waiting, open.next_ms), (0, 1, Some(until_ms)));
    let counts = scene.journal.counts(3000).unwrap().remove(0);
    assert_eq!((counts.due, counts.waiting, counts.next_ms), (0, 1, Some(until_ms)));
    let row = scene.journal.tasks().unwrap().remove(0);
    assert_eq!((row.state.as_str(), row.not_before_ms), ("waiting", Some(until_ms)));
    assert!(scene.journal.revive(&event.id, "cache", 3000).unwrap(), "`queue retry` selects it");
    assert!(scene.journal.close_breaker("cache", 3000).unwrap());
    assert!(!scene.journal.close_breaker("cache", 3000).unwrap(), "it is closed");
    assert_eq!(scene.journal.open_tasks(3000).unwrap().due, 1);
}

#[test]
fn an_unreadable_event_does_not_affect_others() {
    let mut scene = Scene::new();
    let (bad, good) = (post_build("bad"), post_build("good"));
    scene.take(&bad, &["cache"]);
    scene.take(&good, &["cache"]);
    let (mut scene, damage) = scene.reopen(|path| {
        let journal = rusqlite::Connection::open(path).unwrap();
        let written = "UPDATE events SET body = CAST(x'7b22ff' AS TEXT), name = CAST(x'ff' AS TEXT) WHERE id = ?1";
        assert_eq!(journal.execute(written, [&bad.id]).unwrap(), 1);
    });
    assert_eq!(damage, None, "the file itself is valid");
    let (tasks, unreadable) = scene.journal.due("cache", 3000, 9, DueOrder::Oldest).unwrap();
    assert_eq!(tasks, [Task { plugin: "cache".into(), event: good.clone() }]);
    assert_eq!(unreadable[0].event, bad.id);
    scene.journal.lose(&bad.id, "cache", &unreadable[0].reason, 3000).unwrap();
    assert_eq!(scene.due("cache", 3000), ["good"]);
    // An event with another id than its row.
    let other = post_build("other");
    scene.take(&other, &["cache"]);
    let written = "UPDATE events SET body = replace(body, ?1, ?2) WHERE id = ?1";
    scene.journal.connection.execute(written, [&other.id, &good.id]).unwrap();
    let (_, unreadable) = scene.journal.due("cache", 3000, 9, DueOrder::Oldest).unwrap();
    assert_eq!(unreadable[0].event, other.id);
    scene.journal.lose(&other.id, "cache", "the id differs", 3000).unwrap();
    let rows = scene.journal.tasks().unwrap();
    assert_eq!((rows[0].state.as_str(), rows[0].event.name.as_str()), ("lost", "\u{fffd}"));
    // Nothing that looks at all events stumbles over it.
    assert_eq!(scene.journal.unmeasured(9).unwrap(), std::slice::from_ref(&good));
    assert_eq!(scene.journal.rooted_stores().unwrap().len(), 1);
    assert_eq!(scene.journal.rooted_beyond(u64::MAX, 0).unwrap().len(), 1);
    assert_eq!(scene.journal.salvage(), [good]);
}

#[test]
fn events_that_no_plugin_wants_are_kept_for_later_plugins() {
    let mut scene = Scene::new();
    let (early, dropped) = (post_build("early"), post_build("dropped"));
    assert_eq!(scene.take(&early, &[]), IngestResult::New(0));
    scene.take(&dropped, &["cache"]);
    scene.attempt(&dropped, "cache", failed(), Next::Dead);
    scene.journal.discard(&dropped.id, "cache", 3000).unwrap();
    assert_eq!(
        scene.journal.unwanted("", 9).unwrap(),
        std::slice::from_ref(&early),
        "dropped tasks are not included"
    );
    let again = post_build("early");
    assert_eq!(
        scene.take(&again, &[]),
        IngestResult::New(0),
        "it is equal, and no plugin wants it"
    );
    let incoming = |event| Incoming { event, uid: 0, plugins: vec!["cache".into()], rooted: 1 };
    scene.journal.want(&[incoming(&early), incoming(&early)], 4000).unwrap();
    assert_eq!(scene.due("cache", 4000), ["early"]);
    assert_eq!(scene.journal.unwanted("", 9).unwrap(), [again]);
    assert_eq!(scene.journal.is_rooted(&early.id).unwrap(), Some(true));
}

#[test]
fn an_event_is_not_merged_into_one_without_a_task_for_its_plugin() {
    let mut scene = Scene::new();
    let first = post_build("a");
    scene.take(&first, &["cache"]);
    assert_eq!(
        scene.take(&post_build("a"), &["cache", "second"]),
        IngestResult::New(2),
        "the plugin was added since"
    );
    assert_eq!(scene.take(&post_build("a"), &["cache"]), IngestResult::Merged(first.id));
}
