//! Tests of the life of a task.

use super::*;

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
