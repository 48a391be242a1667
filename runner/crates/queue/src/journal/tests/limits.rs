//! Tests of the limits of events and roots.

use super::*;

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
