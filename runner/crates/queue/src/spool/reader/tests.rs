use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::spool::put;
use crate::tests::post_build;

/// What hooks, and others, do to the spool between two batches.
#[derive(Debug, Clone)]
enum Deed {
    /// A hook hands over.
    Put(u8),
    /// A user writes a file that is not an event.
    Junk(u8),
    /// A hook is about to hand over.
    Unfinished(u8),
    /// Somebody removes an event.
    Remove(u8),
    /// The worker is told that something came.
    Tell,
    /// The worker takes a batch.
    Scan(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => any::<u8>().prop_map(Deed::Put),
        1 => any::<u8>().prop_map(Deed::Junk),
        1 => any::<u8>().prop_map(Deed::Unfinished),
        1 => any::<u8>().prop_map(Deed::Remove),
        1 => Just(Deed::Tell),
        3 => (1..5_usize).prop_map(Deed::Scan),
    ]
}

struct Scene {
    _dir: tempfile::TempDir,
    dirs: Dirs,
    reader: Reader,
    /// Ids and how often they were taken.
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

    /// As the worker does: what is taken is unlinked.
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

    /// Until the reader says that there is no more.
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
    fn each_file_is_taken_once_or_set_aside_once(
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
                Deed::Put(number) if !there(&scene, &format!("{number:036}")) => {
                    *put.entry(scene.put(number)).or_default() += 1;
                }
                Deed::Junk(number) if !there(&scene, &format!("{number:036}-odd")) => {
                    scene.write(&format!("{number:036}-odd"));
                    junk += 1;
                }
                Deed::Unfinished(number) => {
                    scene.write(&format!(".{number:036}-begun"));
                    unfinished.insert(format!(".{number:036}-begun"));
                }
                Deed::Remove(number) if there(&scene, &format!("{number:036}")) => {
                    std::fs::remove_file(scene.dirs.spool().join(format!("{number:036}"))).unwrap();
                    put.entry(format!("{number:036}")).and_modify(|count| *count -= 1);
                }
                Deed::Tell => scene.reader.look_again(),
                Deed::Scan(limit) => scene.scan(limit),
                Deed::Put(_) | Deed::Junk(_) | Deed::Remove(_) => {}
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
    fn what_was_there_when_it_began_is_found_without_being_told(count in 0..40_u8, most in 1..9_usize, limit in 1..9_usize) {
        let mut scene = Scene::new(most);
        let ids: BTreeMap<String, usize> = (0..count).map(|number| (scene.put(number), 1)).collect();
        scene.scan_all(limit);
        prop_assert_eq!(&scene.taken, &ids);
        scene.put(200);
        scene.scan_all(limit);
        prop_assert_eq!(scene.taken.len(), ids.len(), "nobody told");
        scene.reader.look_again();
        scene.scan_all(limit);
        prop_assert_eq!(scene.taken.len(), ids.len() + 1);
    }
}

#[test]
fn an_event_that_is_told_does_not_wait_for_a_long_listing() {
    if !rustix::process::geteuid().is_root() {
        // Only root makes files of others.
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
fn names_in_the_making_do_not_keep_events_out() {
    let mut scene = Scene::new(2);
    for number in 0..5 {
        scene.write(&format!(".{number}"));
    }
    scene.put(7);
    scene.scan_all(1);
    assert_eq!(scene.taken.len(), 1);
}

#[test]
fn what_cannot_be_moved_is_looked_at_once() {
    let mut scene = Scene::new(1);
    // In place of the directory for what is set aside.
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
fn what_came_is_taken_without_a_listing() {
    let mut scene = Scene::new(10);
    scene.scan_all(10);
    let id = scene.put(1);
    scene.write("000-odd");
    scene.reader.came(0, id.clone().into_bytes());
    scene.scan_all(10);
    assert_eq!((scene.taken.get(&id), scene.rejected), (Some(&1), 0));
}

#[test]
fn unfinished_files_from_another_century_are_removed() {
    let mut scene = Scene::new(10);
    scene.write(".later");
    let file = std::fs::File::open(scene.dirs.spool().join(".later")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_hours(24 * 365 * 70)).unwrap();
    scene.scan_all(10);
    assert_eq!((scene.rejected, scene.names().len()), (1, 0));
}

/// A place in a directory where everybody may make one.
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
