//! What Nix's own hook says: its own words mixed with those of a machine, of ssh and of a build.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Instant;

use hookrun_builders::run::stock_output::{DelegationOutcome, OutputClassifier};

const SIGKILL: i32 = 9;

/// The process that the dictionary's activities are of.
const PROCESS: u32 = 7;

fn ended(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

pub(crate) fn run(data: &[u8]) {
    let mut listener = OutputClassifier::of(PROCESS, "ssh://m");
    let now = Instant::now();
    let mut held = 0;
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        held += usize::from(!listener.line(line, now));
    }
    assert_eq!(listener.held().len(), held, "what is not passed on is kept");
    assert_eq!(listener.ending(ended(0)), DelegationOutcome::Built, "the exit status decides");
    assert!(matches!(listener.ending(ExitStatus::from_raw(SIGKILL)), DelegationOutcome::Here(_)));
    let failed = listener.ending(ended(1));
    let blames = matches!(failed, DelegationOutcome::Lost(_) | DelegationOutcome::Here(_));
    assert!(!blames || held > 0, "nobody is blamed without an error of the hook: {failed:?}");
    assert!(
        listener
            .close_activities()
            .split(|byte| *byte == b'\n')
            .all(|line| { line.is_empty() || line.starts_with(b"@nix {\"action\":\"stop\"") })
    );
}
