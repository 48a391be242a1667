//! Tests of taking events.

use super::*;

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
