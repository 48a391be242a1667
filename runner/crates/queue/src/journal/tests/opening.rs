//! Tests of damaged journals and of those of other releases.

use super::*;

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
