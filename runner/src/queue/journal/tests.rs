use super::*;
use crate::outcome::{LogLine, Outcome, Usage};
use crate::queue::tests::{diff, post_build};

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

    /// Another worker, after something happened to the file.
    fn reopen(self, meanwhile: impl FnOnce(&Path)) -> (Self, Option<String>) {
        let Self { dir, dirs, journal } = self;
        drop(journal);
        meanwhile(&dirs.journal().join(FILE));
        let (journal, notice) = Journal::open(&dirs).unwrap();
        (Self { dir, dirs, journal }, notice)
    }

    fn take(&mut self, event: &Event, plugins: &[&str]) -> Taken {
        let plugins = plugins.iter().map(|plugin| (*plugin).to_owned()).collect();
        self.journal.take(&[(event, plugins, 1)], 1000).unwrap().remove(0)
    }

    fn attempt(&mut self, event: &Event, plugin: &str, outcome: Outcome, next: Next) -> bool {
        let number = self.journal.begin(&event.id, plugin, 2000).unwrap();
        let log = vec![LogLine { level: "info".into(), message: "said".into(), fields: vec![] }];
        let report = RunReport { outcome, usage: Usage { memory: 65536, ..Usage::default() }, log };
        self.journal
            .finish(&Attempt { event: &event.id, plugin, number, start_ms: 2000, end_ms: 2500 }, &report, next)
            .unwrap()
    }

    fn states(&self) -> Vec<(String, String)> {
        let mut statement =
            self.journal.connection.prepare("SELECT plugin, state FROM tasks ORDER BY event, plugin").unwrap();
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
fn from_event_to_end() {
    let mut scene = Scene::new();
    let event = post_build("hello-1.0");
    assert_eq!(scene.take(&event, &["cache", "mail"]), Taken::New(2));
    assert_eq!(
        scene.take(&event, &["cache", "mail"]),
        Taken::Known { ended: false },
        "the worker was killed before the spool file went"
    );
    assert_eq!(scene.journal.due_plugins(1000).unwrap(), ["cache", "mail"]);
    assert_eq!(scene.journal.due("cache", 1000, 9).unwrap(), [Task { plugin: "cache".into(), event: event.clone() }]);

    assert!(!scene.attempt(&event, "cache", failed(), Next::Retry { after: Duration::from_secs(1) }));
    assert_eq!(scene.journal.due_plugins(3499).unwrap(), ["mail"], "not before its time");
    assert_eq!(scene.journal.next_due(3000).unwrap(), Some(3500));
    assert_eq!(scene.journal.due_plugins(3500).unwrap(), ["cache", "mail"]);
    assert!(!scene.attempt(&event, "mail", done(), Next::Done));
    assert!(scene.attempt(&event, "cache", done(), Next::Done), "the last task ends the event");
    assert_eq!(scene.take(&event, &[]), Taken::Known { ended: true });

    let rows = scene.journal.log(&LogFilter { plugin: Some("cache".into()), ..LogFilter::default() }).unwrap();
    let shown: Vec<_> =
        rows.iter().map(|row| (row.number, row.class.as_str(), row.message.as_str(), row.state.as_str())).collect();
    assert_eq!(shown, [(1, "transient", "no answer", "done"), (2, "done", "uploaded", "done")]);
    assert_eq!(rows[0].usage.as_ref().unwrap().memory, 65536);
    assert_eq!(rows[0].log[0].message, "said");
}

#[test]
fn filters_and_counts() {
    let mut scene = Scene::new();
    let (a, b) = (post_build("alpha"), diff("beta"));
    scene.take(&a, &["cache"]);
    scene.take(&b, &["mail"]);
    scene.attempt(&a, "cache", failed(), Next::Retry { after: Duration::from_secs(9) });
    scene.attempt(&b, "mail", failed(), Next::Dead);
    let names = |filter: LogFilter| scene.journal.log(&filter).unwrap().into_iter().map(|row| row.name).collect::<Vec<_>>();
    assert_eq!(names(LogFilter::default()), ["alpha", "beta"]);
    assert_eq!(names(LogFilter { limit: Some(1), ..LogFilter::default() }), ["beta"], "the newest");
    assert_eq!(names(LogFilter { derivation: Some("alph".into()), ..LogFilter::default() }), ["alpha"]);
    assert_eq!(names(LogFilter { derivation: Some(b.drv_path().into()), ..LogFilter::default() }), ["beta"]);
    assert_eq!(names(LogFilter { outcome: Some("done".into()), ..LogFilter::default() }), Vec::<String>::new());
    assert_eq!(names(LogFilter { since_ms: Some(2501), ..LogFilter::default() }), Vec::<String>::new());

    let counts = scene.journal.counts(3000).unwrap();
    let cache = PluginCounts {
        plugin: "cache".into(),
        waiting: 1,
        oldest_ms: Some(a.time_ms),
        next_ms: Some(11_500),
        ..Default::default()
    };
    assert_eq!(counts, [cache, PluginCounts { plugin: "mail".into(), dead: 1, ..Default::default() }]);
    let open = Open { waiting: 1, dead: 1, next_ms: Some(11_500), ..Open::default() };
    assert_eq!(scene.journal.open_tasks(3000).unwrap(), open);
    let dead = scene.journal.tasks_in_state("dead", 9).unwrap();
    assert_eq!((dead[0].name.as_str(), dead[0].message.as_deref()), ("beta", Some("no answer")));
    let reader = Journal::open_read_only(&scene.dirs).unwrap().unwrap();
    assert_eq!(reader.counts(3000).unwrap(), counts, "beside the worker");
}

#[test]
fn what_says_the_same_is_done_once() {
    let mut scene = Scene::new();
    let (first, second, third) = (post_build("a"), post_build("a"), post_build("a"));
    scene.take(&first, &["cache"]);
    assert_eq!(scene.take(&second, &["cache"]), Taken::Merged(first.id.clone()));
    assert_eq!(scene.take(&post_build("b"), &["cache"]), Taken::New(1));
    scene.attempt(&first, "cache", done(), Next::Done);
    assert_eq!(scene.take(&third, &["cache"]), Taken::New(1), "built again, later: asked again");
}

#[test]
fn a_worker_that_was_killed_costs_one_attempt() {
    let mut scene = Scene::new();
    let event = post_build("a");
    scene.take(&event, &["cache", "mail", "other"]);
    scene.journal.begin(&event.id, "cache", 2000).unwrap();
    scene.journal.begin(&event.id, "other", 2000).unwrap();
    scene.journal.give_back(&event.id, "other", 2001).unwrap();
    scene.attempt(&event, "mail", Outcome::Refused { message: "no grant".into() }, Next::Refused);
    let (mut scene, _) = scene.reopen(|_| ());
    let states = |scene: &Scene| scene.states().into_iter().map(|(_, state)| state).collect::<Vec<_>>();
    assert_eq!(states(&scene), ["running", "refused", "pending"]);
    assert_eq!(scene.journal.resume(5000).unwrap(), 1);
    assert_eq!(states(&scene), ["pending", "pending", "pending"]);
    assert_eq!(scene.journal.begin(&event.id, "cache", 6000).unwrap(), 2);
    assert_eq!(scene.journal.begin(&event.id, "other", 6000).unwrap(), 1, "given back, not spent");
    let rows = scene.journal.log(&LogFilter { outcome: Some("interrupted".into()), ..LogFilter::default() }).unwrap();
    assert_eq!((rows.len(), rows[0].start_ms, rows[0].end_ms, rows[0].usage.is_none()), (1, 2000, 5000, true));
}

#[test]
fn old_events_are_forgotten_and_dead_letters_are_not() {
    let mut scene = Scene::new();
    let (ended, dead, open) = (post_build("a"), post_build("b"), post_build("c"));
    for event in [&ended, &dead, &open] {
        scene.take(event, &["cache"]);
    }
    scene.attempt(&ended, "cache", done(), Next::Done);
    scene.attempt(&dead, "cache", failed(), Next::Dead);
    scene.journal.resume(2500 + u64::try_from(RETENTION.as_millis()).unwrap() + 1).unwrap();
    assert_eq!(scene.states().len(), 2);
    assert_eq!(scene.journal.log(&LogFilter::default()).unwrap().len(), 1);
}

#[test]
fn a_damaged_journal_is_set_aside() {
    let scene = Scene::new();
    let damage = "this is no database, but it is long enough to be read as one".repeat(99);
    let (mut scene, notice) = scene.reopen(|file| std::fs::write(file, damage).unwrap());
    let notice = notice.unwrap();
    assert!(notice.starts_with("the journal was damaged (file is not a database) and is set aside as "), "{notice}");
    assert_eq!(scene.take(&post_build("a"), &["cache"]), Taken::New(1));
    let aside = std::fs::read_dir(scene.dirs.journal())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"));
    assert_eq!(aside.count(), 1);
}

#[test]
fn a_journal_of_a_later_release_is_left_alone() {
    let scene = Scene::new();
    scene.journal.connection.pragma_update(None, "user_version", 9).unwrap();
    for error in [Journal::open(&scene.dirs).map(|_| ()), Journal::open_read_only(&scene.dirs).map(|_| ())] {
        let error = error.unwrap_err().to_string().replace(&scene.dirs.state.display().to_string(), "STATE");
        insta::allow_duplicates! {
            insta::assert_snapshot!(error, @"the journal STATE/journal/journal.sqlite has version 9, and this hookrun knows up to 1; a newer hookrun wrote it: run that one");
        }
    }
}
