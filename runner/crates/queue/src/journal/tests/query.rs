//! Tests of the queries of commands.

use super::*;

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
