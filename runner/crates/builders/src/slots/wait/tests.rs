use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn waiting(name: &str, depth: u32) -> Waiting {
    Waiting {
        drv_path: format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv"),
        name: name.to_owned(),
        depth: Some(depth),
        expected_seconds: None,
        since_ms: 1,
        takes: Amounts::default(),
    }
}

fn wanted(machine: &str, slots: u32) -> Vec<WantedMachine> {
    vec![WantedMachine { machine: machine.into(), slots }]
}

/// Returns one GPU on each of two machines, one of which is not named.
fn limits() -> Resources {
    let text = "[builders.machine-resources.\"ssh://m\"]\ngpu = 2\n[builders.feature-resources.cuda]\ngpu = 1";
    hookrun_config::Config::parse(Path::new("/etc/hookrun.toml"), text).unwrap().builders.resources
}

struct TestDirectory(tempfile::TempDir);

impl TestDirectory {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("builders")).unwrap();
        Self(directory)
    }

    fn queue(&self, command: u32) -> Queue {
        let command = Command { pid: command, started: 1 };
        Queue::new(
            &self.0.path().join("builders"),
            SlotFiles::below(&self.0.path().join("nix")),
            command,
            limits(),
        )
    }
}

#[test]
fn a_free_slot_is_taken_immediately() {
    let place = TestDirectory::new();
    let queue = place.queue(1);
    let Turn::Yours(machine, slot) =
        queue.turn(&waiting("a", 0), &wanted("ssh://m", 1), None, PATIENCE)
    else {
        unreachable!()
    };
    assert_eq!(machine, "ssh://m");
    assert!(matches!(
        queue.turn(&waiting("b", 0), &wanted("ssh://m", 1), None, PATIENCE),
        Turn::Wait { others: 0 }
    ));
    drop(slot);
    assert!(matches!(
        queue.turn(&waiting("b", 0), &wanted("ssh://m", 1), None, PATIENCE),
        Turn::Yours(..)
    ));
}

#[test]
fn the_build_with_more_dependents_goes_first() {
    let place = TestDirectory::new();
    let queue = place.queue(1);
    let deep =
        queue.announce(&waiting("deep", 9), Activity::Waiting(wanted("ssh://m", 1))).unwrap();
    assert!(matches!(
        queue.turn(&waiting("a", 0), &wanted("ssh://m", 1), None, PATIENCE),
        Turn::Wait { others: 1 }
    ));
    assert!(matches!(
        queue.turn(&waiting("deep", 9), &wanted("ssh://m", 1), Some(&deep), PATIENCE),
        Turn::Yours(..)
    ));
    drop(deep);
    assert!(
        matches!(
            queue.turn(&waiting("a", 0), &wanted("ssh://m", 1), None, PATIENCE),
            Turn::Yours(..)
        ),
        "and frees its place"
    );
}

/// Runs more sessions than slots: each gets a slot in the end, and there are never more builds than
/// slots.
#[test]
fn never_more_builds_than_slots() {
    const SLOTS: u32 = 3;
    let place = TestDirectory::new();
    let (busy, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let (_reader, nix) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (queue, nix, busy, most) = (place.queue(number % 2), nix.as_fd(), &busy, &most);
            scope.spawn(move || {
                let mut machines = || wanted("ssh://m", SLOTS);
                let waited = queue.wait(
                    &waiting(&format!("b{number}"), number),
                    &mut machines,
                    None,
                    Duration::ZERO,
                    nix,
                    &mut |_, _| {},
                );
                let Waited::Turn(_, slot) = waited else { unreachable!() };
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                busy.fetch_sub(1, Ordering::SeqCst);
                drop(slot);
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= SLOTS, "over-committed");
}

#[test]
fn waiting_ends_when_nix_exits_or_the_time_is_over() {
    let place = TestDirectory::new();
    let queue = place.queue(1);
    let Turn::Yours(..) = queue.turn(&waiting("a", 0), &wanted("ssh://m", 0), None, PATIENCE)
    else {
        let (reader, nix) = std::io::pipe().unwrap();
        let mut machines = || wanted("ssh://m", 0);
        let mut heard = Vec::new();
        let mut told =
            |machines: &[WantedMachine], others: usize| heard.push((machines.to_vec(), others));
        let soon = Instant::now() + Duration::from_millis(20);
        let over = queue.wait(
            &waiting("a", 0),
            &mut machines,
            Some(soon),
            Duration::ZERO,
            nix.as_fd(),
            &mut told,
        );
        assert!(matches!(over, Waited::TimeOver));
        assert_eq!(heard.first(), Some(&(wanted("ssh://m", 0), 0)));
        drop(reader);
        let gone = queue.wait(
            &waiting("a", 0),
            &mut machines,
            None,
            Duration::ZERO,
            nix.as_fd(),
            &mut |_, _| {},
        );
        assert!(matches!(gone, Waited::NixGone));
        assert_eq!(queue.waiting(), 0, "no build waits any longer");
        return;
    };
    unreachable!("a machine without slots has no free slot");
}
