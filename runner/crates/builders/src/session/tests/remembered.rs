//! What a session writes down of machines and builds, and what follows for the next one.

use super::*;
use crate::history::{Outcome, Selection, now_ms};

#[test]
fn what_is_remembered() {
    let place = Place::new();
    place.play(&far(&["dead", "lost1", "good"]).bytes, None, true);
    let record = place.record();
    let machines = record.machines().unwrap();
    assert_eq!((machines["ssh://dead"].failures, machines["ssh://lost1"].failures), (1, 1));
    assert!(machines["ssh://good"].succeeded_ms.is_some());
    let build = record.builds(Selection::Last(1)).unwrap().remove(0);
    assert_eq!(
        (build.machine.as_str(), build.outcome, build.moves.len()),
        ("ssh://good", Some(Outcome::Built), 2)
    );
    let decision = record.decisions(Selection::Derivation(&build.drv_path)).unwrap().remove(0);
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
    ssh://lost1 Some(2) another was better or had its slot first
    ssh://good Some(3) another was better or had its slot first
    ");
}

#[test]
fn all_machines_out_is_built_here_or_tried_all_the_same() {
    let place = Place::new();
    let story = Story::machines("dead").asks(&here("a"));
    place.play(&story.bytes, None, true);
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!((answers(&reply), offers.len()), (vec!["# decline"], 0));
    assert!(reply.contains("is tried again in"), "{reply}");
    let story = Story::machines("dead aarch64-linux").asks(&elsewhere("a"));
    let (_, _, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://dead"], "nobody else can build it");
}

/// Counts the decisions on record at the moment when a build is declined.
struct Looks<'a> {
    place: &'a Place,
    seen: Option<usize>,
}

impl Write for Looks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains("# decline") {
            self.seen = Some(self.place.record().decisions(Selection::Last(9)).unwrap().len());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn why_nobody_can_build_it_is_on_record_before_nix_gives_up() {
    let place = Place::new();
    let mut looks = Looks { place: &place, seen: None };
    let story = Story::machines("good x86_64-linux").asks(&elsewhere("a"));
    place.session(&story.bytes, &mut looks, &mut Scripted::default(), None, true);
    assert_eq!(looks.seen, Some(1));
}

/// Hears what is said to Nix, and lets another session fail on a machine at the moment when this is
/// said.
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
            // As if it had begun long ago and ended now. From here on the clock shows a later time.
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

/// Sessions that choose a machine at the same time and find it dead one after the other have found
/// one failure.
#[test]
fn a_failure_that_was_on_its_way_when_the_machine_was_chosen_is_the_same() {
    for (words, machine) in [
        // Chosen when the answer was given.
        ("# accept", "ssh://dead1"),
        // Chosen when the one before was lost.
        ("it goes on to ssh://dead2", "ssh://dead2"),
    ] {
        let place = Place::new();
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

/// A machine that is lost in the very millisecond in which it answered is one that was lost.
#[test]
fn a_loss_after_an_answer_counts() {
    for _ in 0..5 {
        let place = Place::new();
        place.play(&far(&["lost1", "good"]).bytes, None, true);
        let known = place.record().machines().unwrap();
        assert_eq!((known["ssh://lost1"].failures, known["ssh://good"].failures), (1, 0));
    }
}
