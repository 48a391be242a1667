//! Tests of the history that a session writes, and of its effect on the next session.

use super::*;
use crate::history::{BuildOutcome, RowSelection, now_ms};

#[test]
fn a_session_records_machines_builds_and_decisions() {
    let place = TestHost::new();
    place.play(&far(&["dead", "lost1", "good"]).bytes, None, true);
    let record = place.record();
    let machines = record.machines().unwrap();
    assert_eq!((machines["ssh://dead"].failures, machines["ssh://lost1"].failures), (1, 1));
    assert!(machines["ssh://good"].succeeded_ms.is_some());
    let build = record.builds(RowSelection::Last(1)).unwrap().remove(0);
    assert_eq!(
        (build.machine.as_str(), build.outcome, build.moves.len()),
        ("ssh://good", Some(BuildOutcome::Built), 2)
    );
    let decision = record.decisions(RowSelection::Derivation(&build.drv_path)).unwrap().remove(0);
    assert_eq!(
        (decision.decided_by.as_str(), decision.answer.as_str()),
        ("Nix's rule", "accept, before connecting")
    );
    let verdicts: Vec<String> = decision
        .machines
        .iter()
        .map(|verdict| format!("{} {:?} {}", verdict.machine, verdict.rank, verdict.reason))
        .collect();
    insta::assert_snapshot!(verdicts.join("\n"), @r"
    ssh://dead Some(1) taken
    ssh://lost1 Some(2) another machine was better or had a free slot first
    ssh://good Some(3) another machine was better or had a free slot first
    ");
}

#[test]
fn if_all_machines_are_out_the_build_runs_here_or_they_are_tried_nevertheless() {
    let place = TestHost::new();
    let story = Conversation::machines("dead").asks(&here("a"));
    place.play(&story.bytes, None, true);
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!((answers(&reply), offers.len()), (vec!["# decline"], 0));
    assert!(reply.contains("is tried again in"), "{reply}");
    let story = Conversation::machines("dead aarch64-linux").asks(&elsewhere("a"));
    let (_, _, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://dead"], "no other machine can build it");
}

/// Counts the recorded decisions at the moment when a build is declined.
struct Looks<'a> {
    place: &'a TestHost,
    seen: Option<usize>,
}

impl Write for Looks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains("# decline") {
            self.seen = Some(self.place.record().decisions(RowSelection::Last(9)).unwrap().len());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_reason_is_recorded_before_nix_gives_up() {
    let place = TestHost::new();
    let mut looks = Looks { place: &place, seen: None };
    let story = Conversation::machines("good x86_64-linux").asks(&elsewhere("a"));
    place.session(&story.bytes, &mut looks, &mut Scripted::default(), None, true);
    assert_eq!(looks.seen, Some(1));
}

/// Receives the replies to Nix, and records a failure of another session when it sees this text.
struct Meanwhile<'a> {
    words: &'a str,
    machine: &'a str,
    builders: &'a std::path::Path,
    heard: Vec<u8>,
}

impl Write for Meanwhile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(bytes);
        if String::from_utf8_lossy(bytes).contains(self.words) {
            // The attempt began long ago and ended now. From here on the clock shows a later time.
            let mut record = Record::open(self.builders).unwrap();
            record
                .machine_failed(self.machine, "the other session's", 0, now_ms() + 1, |_| u64::MAX)
                .unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sessions that choose a machine at the same time, and find it dead one after the other, count as
/// one failure.
#[test]
fn failures_of_concurrent_attempts_count_once() {
    for (words, machine) in [
        // Chosen when the answer was given.
        ("# accept", "ssh://dead1"),
        // Chosen when the previous machine was lost.
        ("it moves to ssh://dead2", "ssh://dead2"),
    ] {
        let place = TestHost::new();
        let mut reply = Meanwhile { words, machine, builders: &place.builders, heard: Vec::new() };
        let mut stock = Scripted::default();
        place.session(&far(&["dead1", "dead2", "good"]).bytes, &mut reply, &mut stock, None, true);
        assert_eq!(stock.offers, ["ssh://dead1", "ssh://dead2", "ssh://good"]);
        let known = place.record().machines().unwrap();
        assert_eq!(
            known[machine].last_error.as_deref(),
            Some("connection refused"),
            "it was told after the other's"
        );
        assert_eq!(known[machine].failures, 1, "{words}");
    }
}

/// A machine that is lost in the same millisecond in which it answered counts as lost.
#[test]
fn a_loss_after_an_answer_counts() {
    for _ in 0..5 {
        let place = TestHost::new();
        place.play(&far(&["lost1", "good"]).bytes, None, true);
        let known = place.record().machines().unwrap();
        assert_eq!((known["ssh://lost1"].failures, known["ssh://good"].failures), (1, 0));
    }
}
