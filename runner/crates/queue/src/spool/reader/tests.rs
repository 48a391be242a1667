use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::spool::put;
use crate::tests::post_build;

/// A change of the spool between two batches.
#[derive(Debug, Clone)]
enum SpoolChange {
    /// A hook writes an event.
    Put(u8),
    /// A user writes a file that is not an event.
    Junk(u8),
    /// A hook begins to write an event.
    Unfinished(u8),
    /// Another process removes an event.
    Remove(u8),
    /// The worker is notified that a file arrived.
    Tell,
    /// The worker takes a batch.
    Scan(usize),
}

fn deed() -> impl Strategy<Value = SpoolChange> {
    prop_oneof![
        3 => any::<u8>().prop_map(SpoolChange::Put),
        1 => any::<u8>().prop_map(SpoolChange::Junk),
        1 => any::<u8>().prop_map(SpoolChange::Unfinished),
        1 => any::<u8>().prop_map(SpoolChange::Remove),
        1 => Just(SpoolChange::Tell),
        3 => (1..5_usize).prop_map(SpoolChange::Scan),
    ]
}

struct Scene {
    _dir: tempfile::TempDir,
    dirs: Dirs,
    reader: Reader,
    /// Ids, and how often each was taken.
    taken: BTreeMap<String, usize>,
    rejected: usize,
}

impl Scene {
    fn new(most: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { config: dir.path().join("hookrun.toml"), state: dir.path().to_owned() };
        layout::make_spool(&dirs.spool()).unwrap();
        let queue = Queue::new(most, most);
        let reader = Reader { queue, at_once: most, ..Reader::new(&dirs, Trust::from_env()) };
        Self { _dir: dir, dirs, reader, taken: BTreeMap::new(), rejected: 0 }
    }

    fn put(&self, number: u8) -> String {
        let event = Event { id: format!("{number:036}"), ..post_build("a") };
        put(&self.dirs, &event).unwrap();
        event.id
    }

    fn write(&self, name: &str) {
        std::fs::write(self.dirs.spool().join(name), "odd").unwrap();
    }

    /// Removes taken events, as the worker does.
    fn scan(&mut self, limit: usize) {
        let before = self.names().len();
        let scan = self.reader.scan(limit);
        assert!(scan.events.len() + scan.rejected.len() <= limit);
        assert!(scan.events.is_sorted_by_key(|spooled| spooled.event.id.clone()), "oldest first");
        self.rejected += scan.rejected.len();
        for spooled in scan.events {
            spooled.remove().unwrap();
            *self.taken.entry(spooled.event.id).or_default() += 1;
        }
        assert!(self.names().len() <= before);
    }

    /// Scans until the reader has no more names.
    fn scan_all(&mut self, limit: usize) {
        let mut batches = 0;
        while self.reader.has_more() {
            self.scan(limit);
            batches += 1;
            assert!(batches < 10_000, "it does not end");
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dirs.spool()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_file_is_taken_or_rejected_once(
        start in proptest::collection::btree_set(any::<u8>(), 0..20),
        deeds in proptest::collection::vec(deed(), 0..40),
        most in 1..9_usize,
        limit in 1..9_usize,
    ) {
        let mut scene = Scene::new(most);
        let mut put: BTreeMap<String, usize> = BTreeMap::new();
        let (mut junk, mut unfinished) = (0, BTreeSet::new());
        for number in &start {
            put.insert(scene.put(*number), 1);
        }
        for deed in deeds {
            let there = |scene: &Scene, name: &str| scene.dirs.spool().join(name).exists();
            match deed {
                SpoolChange::Put(number) if !there(&scene, &format!("{number:036}")) => {
                    *put.entry(scene.put(number)).or_default() += 1;
                }
                SpoolChange::Junk(number) if !there(&scene, &format!("{number:036}-odd")) => {
                    scene.write(&format!("{number:036}-odd"));
                    junk += 1;
                }
                SpoolChange::Unfinished(number) => {
                    scene.write(&format!(".{number:036}-begun"));
                    unfinished.insert(format!(".{number:036}-begun"));
                }
                SpoolChange::Remove(number) if there(&scene, &format!("{number:036}")) => {
                    std::fs::remove_file(scene.dirs.spool().join(format!("{number:036}"))).unwrap();
                    put.entry(format!("{number:036}")).and_modify(|count| *count -= 1);
                }
                SpoolChange::Tell => scene.reader.look_again(),
                SpoolChange::Scan(limit) => scene.scan(limit),
                SpoolChange::Put(_) | SpoolChange::Junk(_) | SpoolChange::Remove(_) => {}
            }
        }
        scene.reader.look_again();
        scene.scan_all(limit);
        put.retain(|_, count| *count > 0);
        prop_assert_eq!(&scene.taken, &put);
        prop_assert_eq!(scene.rejected, junk);
        prop_assert_eq!(scene.names().into_iter().collect::<BTreeSet<_>>(), unfinished);
    }

    #[test]
    fn existing_files_are_found_without_a_notification(count in 0..40_u8, most in 1..9_usize, limit in 1..9_usize) {
        let mut scene = Scene::new(most);
        let ids: BTreeMap<String, usize> = (0..count).map(|number| (scene.put(number), 1)).collect();
        scene.scan_all(limit);
        prop_assert_eq!(&scene.taken, &ids);
        scene.put(200);
        scene.scan_all(limit);
        prop_assert_eq!(scene.taken.len(), ids.len(), "the reader was not notified");
        scene.reader.look_again();
        scene.scan_all(limit);
        prop_assert_eq!(scene.taken.len(), ids.len() + 1);
    }
}

#[test]
fn a_notified_event_does_not_wait_for_a_long_listing() {
    if !rustix::process::geteuid().is_root() {
        // Only root can create files of other users.
        return;
    }
    let mut scene = Scene::new(3);
    for number in 0..30 {
        let name = format!("!{number}");
        scene.write(&name);
        std::os::unix::fs::chown(scene.dirs.spool().join(name), Some(4242), Some(4242)).unwrap();
    }
    scene.scan(10);
    let id = scene.put(1);
    scene.reader.came(0, id.clone().into_bytes());
    scene.scan(10);
    assert_eq!((scene.taken.contains_key(&id), scene.rejected), (true, 0));
    scene.scan_all(10);
    assert_eq!((scene.taken.len(), scene.rejected), (1, 30));
}

#[test]
fn incomplete_files_do_not_displace_events() {
    let mut scene = Scene::new(2);
    for number in 0..5 {
        scene.write(&format!(".{number}"));
    }
    scene.put(7);
    scene.scan_all(1);
    assert_eq!(scene.taken.len(), 1);
}

#[test]
fn a_file_that_cannot_be_moved_is_read_once() {
    let mut scene = Scene::new(1);
    // A file in place of the directory for rejected files.
    std::fs::write(scene.dirs.rejected(), "").unwrap();
    scene.write("000-odd");
    scene.put(1);
    scene.scan_all(1);
    assert_eq!((scene.taken.len(), scene.rejected), (1, 1));
    scene.reader.look_again();
    scene.scan_all(1);
    assert_eq!(scene.rejected, 1);
}

#[test]
fn the_oldest_of_all_directories_is_first() {
    let mut scene = Scene::new(10);
    let other = scene.dirs.state.join("other");
    std::fs::create_dir(&other).unwrap();
    scene.reader.sources.push(Source { path: other.clone(), owner: None, open: None });
    for number in 0..4 {
        let id = scene.put(number);
        if number % 2 == 0 {
            std::fs::rename(scene.dirs.spool().join(&id), other.join(&id)).unwrap();
        }
    }
    let found = scene.reader.scan(10).events;
    assert_eq!(
        found.into_iter().map(|spooled| spooled.event.id).collect::<Vec<_>>(),
        (0..4).map(|number| format!("{number:036}")).collect::<Vec<_>>()
    );
}

#[test]
fn a_notified_file_is_taken_without_a_listing() {
    let mut scene = Scene::new(10);
    scene.scan_all(10);
    let id = scene.put(1);
    scene.write("000-odd");
    scene.reader.came(0, id.clone().into_bytes());
    scene.scan_all(10);
    assert_eq!((scene.taken.get(&id), scene.rejected), (Some(&1), 0));
}

#[test]
fn incomplete_files_with_times_in_the_future_are_removed() {
    let mut scene = Scene::new(10);
    scene.write(".later");
    let file = std::fs::File::open(scene.dirs.spool().join(".later")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_hours(24 * 365 * 70)).unwrap();
    scene.scan_all(10);
    assert_eq!((scene.rejected, scene.names().len()), (1, 0));
}

/// Tests a fallback in a directory where every user may create one.
#[test]
fn a_directory_of_another_owner_is_not_read() {
    let mut scene = Scene::new(10);
    let other = scene.dirs.state.join("other");
    std::fs::create_dir(&other).unwrap();
    let id = scene.put(1);
    std::fs::rename(scene.dirs.spool().join(&id), other.join(&id)).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    for (owner, taken) in [(uid + 1, 0), (uid, 1)] {
        scene.reader.sources.push(Source { path: other.clone(), owner: Some(owner), open: None });
        scene.reader.look_again();
        scene.scan_all(10);
        assert_eq!(scene.taken.len(), taken);
    }
}
