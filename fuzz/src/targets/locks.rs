//! `/proc/locks`, whose lines name locks of every user of the machine.

use hookrun_builders::run::local_builds;

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let locked = local_builds::locked(&text);
    let flock = text.lines().filter(|line| line.contains("FLOCK"));
    assert!(locked.len() <= flock.count(), "{locked:?}");
}
