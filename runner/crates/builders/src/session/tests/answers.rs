//! Tests that each question has exactly one answer, and which one.

use super::*;
use hookrun_nix::selection::Action;

#[test]
fn a_dead_machine_is_skipped_in_one_request() {
    let (end, reply, offers) =
        Conversation::machines("dead - - 1 9;good").asks(&here("a")).inputs().play();
    assert_eq!(end, End::Built(0));
    assert_eq!(offers, ["ssh://dead", "ssh://good"]);
    insta::assert_snapshot!(reply, @r#"
    @nix {"action":"msg","level":4,"msg":"hookrun: a goes to ssh://dead, then ssh://good: load 0/1 at factor 9"}
    @nix {"action":"start"}
    @nix {"action":"msg","level":1,"msg":"hookrun: machine ssh://dead skipped: connection refused"}
    @nix {"action":"msg","level":4,"msg":"hookrun: a goes to ssh://good: load 0/1 at factor 1"}
    @nix {"action":"start"}
    # accept
    ssh://good
    log
    "#);
}

#[test]
fn a_machine_that_failed_stays_out_for_the_session() {
    let (_, reply, offers) =
        Conversation::machines("dead").asks(&here("a")).asks(&here("b")).play();
    assert_eq!(offers, ["ssh://dead"]);
    assert_eq!(answers(&reply), ["# decline", "# decline"]);
}

#[test]
fn if_all_machines_are_dead_the_build_is_declined_with_a_message() {
    let other = Request::of("a", "aarch64-linux", &["kvm"], false);
    let (end, reply, _) =
        Conversation::machines("dead1 aarch64-linux - - - kvm;dead2 aarch64-linux - - - kvm;good")
            .asks(&other)
            .play();
    assert_eq!(end, End::Closed);
    assert_eq!(
        answers(&reply),
        ["# decline"],
        "so that Nix reports itself that it cannot build, and does not wait"
    );
    insta::assert_snapshot!(reply.lines().rev().nth(1).unwrap(), @r#"@nix {"action":"msg","level":1,"msg":"hookrun: no machine can take a (aarch64-linux, kvm): of 3, 2 cannot be used and 1 do not fit"}"#);
}

#[test]
fn full_machines_postpone_the_build() {
    let answer = |willing: bool| {
        let (_, reply, _) = Conversation::machines("full;dead")
            .asks(&Request::of("a", "x86_64-linux", &[], willing))
            .play();
        answers(&reply).concat()
    };
    assert_eq!(answer(true), "# decline");
    assert_eq!(answer(false), "# postpone");
}

#[test]
fn without_machines_the_build_is_declined_permanently() {
    let (end, reply, _) = Conversation::machines("# none").asks(&here("a")).asks(&here("b")).play();
    assert_eq!((end, reply.as_str()), (End::Closed, "# decline-permanently\n"));
}

#[test]
fn the_policy_decides() {
    let decided = |select: Select| {
        let (_, reply, offers) =
            Conversation::machines("m1;m2 - - 1 4").policy(select).asks(&here("a")).play();
        format!("{} {}", answers(&reply).join(" "), offers.join(" "))
    };
    assert_eq!(
        decided(|machines| {
            let uris = machines.iter().map(|machine| machine.uri.clone()).collect();
            Ok(Decision::new(Action::Machines(uris), "in order"))
        }),
        "# accept ssh://m1"
    );
    assert_eq!(decided(|_| Ok(Decision::new(Action::Local, ""))), "# decline ");
    assert_eq!(decided(|_| Ok(Decision::new(Action::Decline, ""))), "# decline ");
    assert_eq!(decided(|_| Ok(Decision::new(Action::Postpone, ""))), "# postpone ");
}

#[test]
fn a_policy_that_fails_is_replaced_by_the_rule_of_nix_with_one_line() {
    let selects: [Select; 3] = [
        |_| Err(PolicyError::Failed("trap: unreachable".to_owned())),
        |_| Ok(Decision::new(Action::Machines(vec!["ssh://m3".into()]), "")),
        |_| panic!("defect"),
    ];
    for select in selects {
        let story = Conversation::machines("full;m1 - - 1 4").policy(select).asks(&Request::of(
            "a",
            "riscv64-linux",
            &[],
            true,
        ));
        let (_, reply, offers) = story.asks(&here("b")).asks(&here("c")).inputs().play();
        assert_eq!(answers(&reply), ["# decline", "# accept"]);
        assert_eq!(offers, ["ssh://m1"]);
        assert_eq!(reply.matches("gave no answer").count(), 1, "{reply}");
        assert!(reply.contains("Nix's own rule is used"));
    }
}

#[test]
fn an_invalid_line_affects_only_its_machine() {
    let (end, reply, _) =
        Conversation::machines("bad - - many;good").asks(&here("a")).inputs().play();
    assert_eq!(end, End::Built(0));
    assert!(reply.contains("column 4"), "{reply}");
}
