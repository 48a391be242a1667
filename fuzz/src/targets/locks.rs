//! `/proc/locks`, whose lines name locks of every user of the machine.

use hookrun_builders::run::local_builds;

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "locks",
    about: "the kernel's list of file locks",
    dictionary: &[
        "1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF\n",
        "2: -> FLOCK  ADVISORY  WRITE 1 fe:00:5678 0 EOF\n",
        "POSIX",
        "OFDLCK",
        "LEASE",
        "00:01:",
        "ffffffff:",
    ],
    run,
};

fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let locked = local_builds::locked(&text);
    let flock = text.lines().filter(|line| line.contains("FLOCK"));
    assert!(locked.len() <= flock.count(), "{locked:?}");
}
