use super::*;
use crate::history::*;
use hookrun_nix::selection::{Candidate, PastBuilds};

fn candidate(name: &str) -> Candidate {
    Candidate {
        drv_path: format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}-1.drv"),
        name: format!("{name}-1"),
        pname: name.to_owned(),
        system: "x86_64-linux".to_owned(),
        ..Candidate::default()
    }
}

fn built(record: &Record, name: &str, machine: &str, seconds: f64, speed_factor: f64) {
    let candidate = candidate(name);
    let new = NewBuild {
        candidate: &candidate,
        command: "nix-build 1",
        machine: "ssh://first",
        accepted_ms: 1000,
    };
    let id = record.begin_build(&new).unwrap();
    let ended = BuildEnd {
        machine,
        speed_factor,
        waited_ms: 5,
        started_ms: Some(1100),
        ended_ms: 2000,
        seconds: Some(seconds),
        outcome: BuildOutcome::Built,
        detail: None,
        input_bytes: Some(7),
        moves: &[Move { machine: "ssh://first".to_owned(), why: "gone".to_owned() }],
    };
    record.end_build(id, &ended).unwrap();
}

#[test]
fn a_missing_database_is_an_empty_history() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Record::read(directory.path()).unwrap().is_none());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "reading creates no file");
    std::fs::write(
        directory.path().join(FILE),
        "this is not a database, but it is long enough to be read as one",
    )
    .unwrap();
    assert!(Record::read(directory.path()).is_err());
    Record::open(directory.path()).unwrap();
    assert!(Record::read(directory.path()).unwrap().unwrap().machines().unwrap().is_empty());
}

#[test]
fn failures_and_answers_change_the_health() {
    let directory = tempfile::tempdir().unwrap();
    let mut record = Record::open(directory.path()).unwrap();
    let retry = |failures: u32| 100 * u64::from(failures);
    record.machine_failed("ssh://m", "refused", 10, 20, retry).unwrap();
    record.machine_failed("ssh://m", "refused", 15, 25, retry).unwrap();
    let of = |record: &Record| record.machines().unwrap().remove("ssh://m").unwrap();
    assert_eq!(
        (of(&record).failures, of(&record).retry_ms),
        (1, Some(100)),
        "two concurrent attempts count as one failure"
    );
    record.machine_failed("ssh://m", "hangs", 30, 40, retry).unwrap();
    assert_eq!((of(&record).failures, of(&record).last_error.as_deref()), (2, Some("hangs")));
    record.machine_answered("ssh://m", 12, 50).unwrap();
    record.machine_failed("ssh://m", "late", 45, 60, retry).unwrap();
    let expected = MachineHealth {
        machine: "ssh://m".to_owned(),
        failures: 0,
        last_error: Some("hangs".to_owned()),
        failed_ms: Some(40),
        retry_ms: None,
        succeeded_ms: Some(50),
        connect_ms: Some(12),
        bytes_per_second: None,
    };
    assert_eq!(
        of(&record),
        expected,
        "an attempt that began before the last answer does not count"
    );
    record.machine_copied("ssh://m", 1000.0).unwrap();
    record.machine_copied("ssh://m", 2000.0).unwrap();
    assert!((of(&record).bytes_per_second.unwrap() - 1300.0).abs() < 0.1);
}

#[test]
fn medians_are_computed_from_past_builds() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::open(directory.path()).unwrap();
    for seconds in [10.0, 30.0, 20.0] {
        built(&record, "hello", "ssh://slow", seconds, 1.0);
    }
    built(&record, "hello", "ssh://fast", 5.0, 4.0);
    built(&record, "other", "ssh://fast", 500.0, 4.0);
    let past = record.past("hello", "x86_64-linux").unwrap();
    assert_eq!(past.expected_seconds, Some(20.0));
    assert_eq!(past.machines["ssh://slow"], PastBuilds { count: 3, median_seconds: 20.0 });
    assert_eq!(past.machines["ssh://fast"], PastBuilds { count: 1, median_seconds: 5.0 });
    assert_eq!(record.past("hello", "riscv64-linux").unwrap(), Past::default());
    let reader = Record::read(directory.path()).unwrap().unwrap();
    let rows = reader.builds(RowSelection::Last(2)).unwrap();
    assert_eq!(rows.iter().map(|row| row.pname.as_str()).collect::<Vec<_>>(), ["other", "hello"]);
    assert_eq!(
        (rows[0].waited_ms, rows[0].outcome, rows[0].moves.len()),
        (Some(5), Some(BuildOutcome::Built), 1)
    );
    assert_eq!(
        reader.builds(RowSelection::Derivation(&candidate("hello").drv_path)).unwrap().len(),
        4
    );
}

#[test]
fn only_the_newest_decisions_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::open(directory.path()).unwrap();
    for number in 0..DECISIONS_KEPT + 5 {
        let row = DecisionRow {
            at_ms: u64::try_from(number).unwrap(),
            candidate: candidate("hello"),
            command: "nix-build 1".to_owned(),
            local_willing: false,
            decided_by: "policy".to_owned(),
            action: "machines".to_owned(),
            reason: "because".to_owned(),
            answer: "accept".to_owned(),
            machines: vec![ConsideredMachine {
                machine: "ssh://m".to_owned(),
                slots: 1,
                load: 0,
                speed_factor: 1.0,
                missing_bytes: Some(7),
                rank: Some(1),
                taken: true,
                reason: "ranked first".to_owned(),
            }],
        };
        record.decided(&row).unwrap();
    }
    let rows = record.decisions(RowSelection::Last(u32::MAX)).unwrap();
    assert_eq!(rows.len(), usize::try_from(DECISIONS_KEPT).unwrap());
    assert_eq!(rows[0].at_ms, u64::try_from(DECISIONS_KEPT).unwrap() + 4);
}

#[test]
fn the_first_time_of_postponing_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let record = Record::open(directory.path()).unwrap();
    assert_eq!(record.postponed("a", 1_000_000).unwrap(), 1_000_000);
    assert_eq!(record.postponed("a", 1_060_000).unwrap(), 1_000_000);
    assert_eq!(record.postponed("b", 1_060_000).unwrap(), 1_060_000);
    assert_eq!(
        record.postponed("a", 1_500_000).unwrap(),
        1_500_000,
        "after a long time it counts as new"
    );
}

#[test]
fn many_sessions_write_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let mut record = Record::open(path).unwrap();
                    built(&record, &format!("p{number}"), "ssh://m", 1.0, 1.0);
                    record.machine_failed("ssh://m", "x", 0, 1, |_| 1).unwrap();
                }
            });
        }
    });
    assert_eq!(
        Record::open(path).unwrap().builds(RowSelection::Last(u32::MAX)).unwrap().len(),
        160
    );
}
