//! Tests of the steps after an accept, and of when it may be sent before connecting.

use super::*;
use hookrun_nix::selection::Action;

#[test]
fn a_build_is_accepted_before_connecting_and_moves_on() {
    let (end, reply, offers) =
        TestHost::new().play(&far(&["dead", "lost1", "good"]).bytes, None, true);
    assert_eq!(end, End::Built(0));
    assert_eq!(offers, ["ssh://dead", "ssh://lost1", "ssh://good"]);
    let answer = reply.find("# accept\nssh://dead\n").unwrap();
    assert!(answer < reply.find("ssh://dead is lost").unwrap(), "the answer comes first: {reply}");
    let told: Vec<&str> = reply
        .lines()
        .skip_while(|line| !line.starts_with("# "))
        .filter(|l| l.contains("hookrun"))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://dead is lost (connection refused); it moves to ssh://lost1"}
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://lost1 is lost (unexpected end-of-file); it moves to ssh://good"}
    "#);
    assert!(!reply.contains("held"), "errors of lost machines are not shown");
}

#[test]
fn a_build_that_fails_is_not_tried_again() {
    let (end, reply, offers) = TestHost::new().play(&far(&["bad", "good"]).bytes, None, true);
    assert_eq!((end, offers.len()), (End::Built(56), 1), "the exit code of the stock hook");
    assert!(reply.ends_with("log\nheld\n"), "its error is shown: {reply}");
}

#[test]
fn a_build_without_a_remaining_machine_fails_with_all_reasons() {
    let (end, reply, _) = TestHost::new().play(&far(&["dead1", "dead2"]).bytes, None, true);
    assert_eq!(end, End::Built(1));
    let last = reply.lines().last().unwrap();
    insta::assert_snapshot!(last, @r#"@nix {"action":"msg","level":0,"msg":"hookrun: a was accepted, but no machine is left to build it: ssh://dead1: connection refused; ssh://dead2: connection refused"}"#);
    let (end, _, offers) =
        TestHost::new().play(&far(&["lost1", "lost2", "lost3", "lost4"]).bytes, None, true);
    assert_eq!(
        (end, offers.len()),
        (End::Built(1), 3),
        "a build that loses its machines is stopped"
    );
}

#[test]
fn the_session_connects_first_if_accepting_early_could_lose_something() {
    let story = Conversation::machines("dead;m1").asks(&here("a")).inputs();
    let place = TestHost::new();
    let (_, reply, _) = place.play(&story.bytes, None, true);
    assert!(reply.contains("# accept\nssh://m1"), "it can be built here: {reply}");
    assert!(reply.find("skipped").unwrap() < reply.find("# accept").unwrap());
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://m1"], "the other one is out");
    assert!(!reply.contains("skipped"));
    let place = TestHost::new();
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(answers(&reply), ["# accept"], "it cannot be built here anyway");
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(answers(&reply).first(), Some(&"# decline"), "the machine is known to be dead now");
}

/// Nix's own hook would find the machine dead, and Nix would build on this machine.
#[test]
fn a_build_that_this_machine_can_do_is_left_to_it_when_a_proven_machine_has_died() {
    let place = TestHost::new();
    place.play(&Conversation::machines("m1").asks(&here("a")).inputs().bytes, None, true);
    // The machine is dead, but another session has just recorded it as proven.
    let record = Record::open(&place.builders).unwrap();
    record.machine_answered("ssh://dead", 1, crate::history::now_ms()).unwrap();
    let (end, reply, _) =
        place.play(&Conversation::machines("dead").asks(&here("b")).bytes, None, true);
    assert_eq!((end, answers(&reply)), (End::Closed, vec!["# decline"]), "{reply}");
}

/// Names only the first machine that is offered; if that is missing, returns `otherwise`.
fn first_or(otherwise: Action, machines: &[Machine]) -> Decision {
    let first = machines.iter().find(|machine| machine.uri.ends_with('1'));
    let action = first.map_or(otherwise, |first| Action::Machines(vec![first.uri.clone()]));
    Decision::new(action, "")
}

/// Policies that name one machine, and give no answer if it is missing.
const STUBBORN: [Select; 5] = [
    |machines| Ok(first_or(Action::Postpone, machines)),
    |machines| Ok(first_or(Action::Decline, machines)),
    |machines| Ok(first_or(Action::Local, machines)),
    |_| Ok(Decision::new(Action::Machines(vec!["ssh://dead1".into()]), "")),
    |machines| {
        if machines.iter().any(|machine| machine.uri.ends_with('1')) {
            Ok(first_or(Action::Decline, machines))
        } else {
            Err(PolicyError::Failed("trap: unreachable".to_owned()))
        }
    },
];

#[test]
fn a_machine_that_the_policy_left_out_is_used_when_the_chosen_one_refuses() {
    for (number, policy) in STUBBORN.into_iter().enumerate() {
        for early_accept in [true, false] {
            let story = far(&["good", "dead1"]);
            let (end, reply, offers) =
                TestHost::new().play(&story.bytes, Some(policy), early_accept);
            assert_eq!(end, End::Built(0), "policy {number}, early {early_accept}: {reply}");
            assert_eq!(offers, ["ssh://dead1", "ssh://good"], "policy {number}");
            assert_eq!(answers(&reply), ["# accept"]);
        }
    }
}

#[test]
fn a_machine_that_the_policy_left_out_is_used_when_the_chosen_one_is_lost() {
    let lost: Select = |machines| {
        let lost = machines.iter().find(|machine| machine.uri.contains("lost"));
        let action = lost.map_or(Action::Postpone, |lost| Action::Machines(vec![lost.uri.clone()]));
        Ok(Decision::new(action, ""))
    };
    for early_accept in [true, false] {
        let story = far(&["good", "dead", "lost1"]);
        let (end, _, offers) = TestHost::new().play(&story.bytes, Some(lost), early_accept);
        assert_eq!(end, End::Built(0));
        assert_eq!(offers.first().map(String::as_str), Some("ssh://lost1"));
        assert_eq!(offers.iter().filter(|offer| offer.as_str() == "ssh://lost1").count(), 1);
    }
}

#[test]
fn a_build_does_not_wait_for_a_machine_that_is_out_if_the_policy_names_no_other() {
    // For the second build the machine is out, and the policy answers as before.
    for (number, policy) in STUBBORN.into_iter().enumerate() {
        let place = TestHost::new();
        let story = far(&["good", "dead1"]);
        place.play(&story.bytes, Some(policy), true);
        let (end, _, offers) = place.play(&story.bytes, Some(policy), true);
        assert_eq!((end, offers), (End::Built(0), vec!["ssh://good".to_owned()]), "{number}");
    }
}

#[test]
fn a_problem_of_this_machine_fails_the_build_and_puts_no_machine_out() {
    let place = TestHost::new();
    for (machine, words) in [
        ("here", "this machine cannot start remote builds: Nix's database is locked"),
        ("disk", "this machine cannot store the outputs: No space left on device"),
    ] {
        let story = far(&[machine, "good"]);
        let (end, reply, offers) = place.play(&story.bytes, None, true);
        assert!(matches!(end, End::Built(1..)), "{end:?}");
        assert_eq!(offers.len(), 1, "it is not tried elsewhere");
        assert_eq!(reply.matches(words).count(), 1, "{reply}");
        let machines = place.record().machines().unwrap();
        assert!(machines.values().all(|health| health.failures == 0), "{machines:?}");
    }
    // Before an answer, Nix is told to continue without machines.
    let story = Conversation::machines("here;good").asks(&here("a"));
    let (_, reply, offers) = TestHost::new().play(&story.bytes, None, true);
    assert_eq!((answers(&reply), offers.len()), (vec!["# decline"], 1));
    assert!(reply.contains("a: this machine cannot start remote builds"), "{reply}");
}

/// Receives the replies to Nix, and records the machine as dead for another session when Nix has
/// its answer.
struct DeadAfterAccept<'a> {
    machine: &'a str,
    place: &'a TestHost,
    heard: Vec<u8>,
}

impl Write for DeadAfterAccept<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(bytes);
        if bytes.starts_with(b"# accept") {
            let now = crate::history::now_ms();
            let mut record = Record::open(&self.place.builders).unwrap();
            record.machine_failed(self.machine, "dead", now, now, |_| now + 60_000).unwrap();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_build_that_waits_for_a_machine_that_dies_goes_to_one_that_the_policy_left_out() {
    let place = TestHost::new();
    let busy = SlotFiles::below(&place.directory.path().join("nix")).take("ssh://fast1", 1);
    assert!(matches!(busy, crate::slots::slot_files::SlotResult::Slot(_)));
    let mut reply = DeadAfterAccept { machine: "ssh://fast1", place: &place, heard: Vec::new() };
    let mut stock = Scripted::default();
    let story = far(&["good", "fast1"]);
    let policy = Some(STUBBORN[0]);
    let end = place.session(&story.bytes, &mut reply, &mut stock, policy, true);
    let heard = String::from_utf8(reply.heard).unwrap();
    assert_eq!((end, answers(&heard)), (End::Built(0), vec!["# accept"]), "{heard}");
    assert_eq!(stock.offers, ["ssh://good"]);
}
