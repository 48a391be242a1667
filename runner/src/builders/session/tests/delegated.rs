//! What follows an accept, and when it may come before connecting.

use super::*;

#[test]
fn accepted_before_connecting_and_moved_on() {
    let (end, reply, offers) =
        Place::new().play(&far(&["dead", "lost1", "good"]).bytes, None, true);
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
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://dead is lost (connection refused); it goes on to ssh://lost1"}
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://lost1 is lost (unexpected end-of-file); it goes on to ssh://good"}
    "#);
    assert!(!reply.contains("held"), "errors of lost machines are not shown");
}

#[test]
fn a_build_that_fails_is_not_tried_again() {
    let (end, reply, offers) = Place::new().play(&far(&["bad", "good"]).bytes, None, true);
    assert_eq!((end, offers.len()), (End::Built(56), 1), "the exit code of the stock hook");
    assert!(reply.ends_with("log\nheld\n"), "its error is shown: {reply}");
}

#[test]
fn a_build_that_nobody_can_take_any_more_fails_with_all_reasons() {
    let (end, reply, _) = Place::new().play(&far(&["dead1", "dead2"]).bytes, None, true);
    assert_eq!(end, End::Built(1));
    let last = reply.lines().last().unwrap();
    insta::assert_snapshot!(last, @r#"@nix {"action":"msg","level":0,"msg":"hookrun: a was taken, and no machine is left to build it: ssh://dead1: connection refused; ssh://dead2: connection refused"}"#);
    let (end, _, offers) =
        Place::new().play(&far(&["lost1", "lost2", "lost3", "lost4"]).bytes, None, true);
    assert_eq!(
        (end, offers.len()),
        (End::Built(1), 3),
        "a build that loses its machines is stopped"
    );
}

#[test]
fn connected_first_where_something_could_be_lost() {
    let story = Story::machines("dead;m1").asks(&here("a")).inputs();
    let place = Place::new();
    let (_, reply, _) = place.play(&story.bytes, None, true);
    assert!(reply.contains("# accept\nssh://m1"), "it can be built here: {reply}");
    assert!(reply.find("skipped").unwrap() < reply.find("# accept").unwrap());
    // Now one is proven.
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://m1"], "and the other one is out");
    assert!(!reply.contains("skipped"));
    let place = Place::new();
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(answers(&reply), ["# accept"], "it cannot be built here anyway");
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(
        answers(&reply).first(),
        Some(&"# decline"),
        "but the machine is known to be dead now"
    );
}
