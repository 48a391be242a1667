//! A table of questions with their decisions, and properties of every decision.

use hookrun_sdk::builder_selection::Action;
use proptest::prelude::*;

use super::*;

fn machine(uri: &str, slots: u32, load: u32, speed_factor: f64) -> Machine {
    Machine { uri: uri.to_owned(), slots, load, speed_factor, healthy: true, ..Machine::default() }
}

fn candidate(expected: f64) -> Candidate {
    Candidate {
        system: "x86_64-linux".to_owned(),
        expected_seconds: Some(expected),
        ..Candidate::default()
    }
}

fn local(able: bool, willing: bool, factor: Option<f64>) -> LocalMachine {
    LocalMachine { able, willing, slots: 4, speed_factor: factor, ..LocalMachine::default() }
}

fn decision_on(candidate: &Candidate, machines: &[Machine], local: &LocalMachine) -> String {
    let Decision { action, reason, ask_again } =
        decide(&Options::default(), candidate, machines, local);
    let ask_again = ask_again.map(|within| format!(" [again in {within:?}]")).unwrap_or_default();
    match action {
        Action::Machines(uris) => format!("{}: {reason}{ask_again}", uris.join(", then ")),
        other => format!("{other:?}: {reason}{ask_again}"),
    }
}

#[test]
fn decisions_are_explained() {
    let nowhere = local(false, false, None);
    let idle = [machine("slow", 4, 0, 1.0), machine("fast", 4, 0, 4.0)];
    let equal = [machine("busier", 4, 2, 1.0), machine("emptier", 4, 1, 1.0)];
    let fast_full = [
        machine("slow", 4, 0, 1.0),
        Machine { busy_seconds: vec![5.0, 90.0], ..machine("fast", 2, 2, 4.0) },
    ];
    let all_full = [
        Machine { busy_seconds: vec![8.0], ..machine("slow", 1, 1, 1.0) },
        Machine { busy_seconds: vec![20.0], ..machine("fast", 1, 1, 4.0) },
    ];
    let far = [
        Machine {
            missing_bytes: Some(3_000_000_000),
            bytes_per_second: Some(100e6),
            ..machine("far", 2, 0, 2.0)
        },
        Machine { missing_bytes: Some(0), connect_ms: Some(400), ..machine("near", 2, 0, 1.0) },
    ];
    let kvm = Machine { supported_features: vec!["kvm".to_owned()], ..machine("kvm", 2, 1, 1.5) };
    let with_kvm = [machine("plain", 2, 0, 1.0), kvm.clone()];
    let needs_kvm = Candidate { required_features: vec!["kvm".to_owned()], ..candidate(60.0) };
    let past = Some(PastBuilds { count: 5, median_seconds: 10.0 });
    let known =
        [Machine { past, ..machine("known", 2, 0, 1.0) }, machine("said-to-be-fast", 2, 0, 2.0)];
    let failed =
        [Machine { healthy: false, ..machine("fast", 2, 0, 4.0) }, machine("slow", 2, 0, 1.0)];
    let hinted = |hint: &str, value: &str| Candidate {
        hints: vec![(hint.to_owned(), value.to_owned())],
        ..Candidate::default()
    };
    let waits = |waiting| LocalMachine { waiting, ..nowhere.clone() };
    let known_here = LocalMachine {
        past: Some(PastBuilds { count: 1, median_seconds: 3.0 }),
        ..local(true, true, Some(5.0))
    };
    let spoken_for = LocalMachine { running: 4, ..local(true, true, Some(2.0)) };
    let half_known = [machine("unknown", 2, 0, 1.0), far[1].clone(), far[0].clone()];
    let lines = [
        ("two idle machines", decision_on(&candidate(60.0), &idle, &nowhere)),
        ("equal machines, different load", decision_on(&candidate(60.0), &equal, &nowhere)),
        (
            "short build, the fast machine is full",
            decision_on(&candidate(4.0), &fast_full, &nowhere),
        ),
        (
            "long build, the fast machine is full",
            decision_on(&candidate(600.0), &fast_full, &nowhere),
        ),
        (
            "long build, the fast machine is full, many builds wait",
            decision_on(&candidate(600.0), &fast_full, &waits(200)),
        ),
        ("all full", decision_on(&candidate(60.0), &all_full, &nowhere)),
        (
            "all full, this machine is free",
            decision_on(&candidate(60.0), &all_full, &local(true, true, None)),
        ),
        ("large inputs, short build", decision_on(&candidate(20.0), &far, &nowhere)),
        ("large inputs, long build", decision_on(&candidate(3000.0), &far, &nowhere)),
        ("last slot of a machine with kvm", decision_on(&candidate(60.0), &with_kvm, &nowhere)),
        (
            "last slot of a machine with kvm, kvm is required",
            decision_on(&needs_kvm, &[kvm], &nowhere),
        ),
        ("history contradicts the speed factor", decision_on(&candidate(60.0), &known, &nowhere)),
        ("one machine has failed", decision_on(&candidate(60.0), &failed, &nowhere)),
        ("all machines have failed", decision_on(&candidate(60.0), &failed[..1], &nowhere)),
        (
            "all machines have failed, this machine is free",
            decision_on(&candidate(60.0), &failed[..1], &local(true, true, None)),
        ),
        (
            "this machine is faster",
            decision_on(&candidate(60.0), &idle[..1], &local(true, true, Some(2.0))),
        ),
        (
            "this machine is faster, known from history",
            decision_on(&Candidate::default(), &idle, &known_here),
        ),
        (
            "this machine is faster, all its slots are taken",
            decision_on(&candidate(60.0), &idle[..1], &spoken_for),
        ),
        ("unknown inputs on one machine", decision_on(&candidate(20.0), &half_known, &nowhere)),
        (
            "another machine is faster",
            decision_on(&candidate(60.0), &idle, &local(true, true, Some(2.0))),
        ),
        (
            "this machine is faster, but busy",
            decision_on(&candidate(60.0), &idle[..1], &local(true, false, Some(2.0))),
        ),
        ("no history", decision_on(&Candidate::default(), &idle, &nowhere)),
        ("hint `seconds`", decision_on(&hinted("seconds", "600"), &idle, &nowhere)),
        ("hint `machine`", decision_on(&hinted("machine", "slow"), &idle, &nowhere)),
        ("hint `local`", decision_on(&hinted("local", ""), &idle, &local(true, false, None))),
        (
            "hint `local`, this machine cannot build it",
            decision_on(&hinted("local", ""), &idle, &nowhere),
        ),
        (
            "fixed output",
            decision_on(
                &Candidate { fixed_output: true, ..Candidate::default() },
                &idle,
                &local(true, true, None),
            ),
        ),
        (
            "preferLocalBuild",
            decision_on(
                &Candidate { prefer_local: true, ..Candidate::default() },
                &idle,
                &local(true, false, None),
            ),
        ),
        (
            "builtin",
            decision_on(
                &Candidate { builtin: true, ..Candidate::default() },
                &idle,
                &local(true, false, None),
            ),
        ),
    ];
    let text: Vec<String> =
        lines.iter().map(|(what, decision)| format!("{what}\n    {decision}")).collect();
    insta::assert_snapshot!(text.join("\n"));
}

prop_compose! {
    fn any_machine()(
        slots in 0u32..9,
        load in 0u32..9,
        speed_factor in 0.01f64..20.0,
        healthy: bool,
        kvm: bool,
        past in prop::option::of((0u32..9, 0.0f64..1e4)),
        busy_seconds in prop::collection::vec(0.0f64..1e4, 0..4),
        missing_bytes in prop::option::of(any::<u64>()),
        bytes_per_second in prop::option::of(0.0f64..1e9),
        connect_ms in prop::option::of(any::<u32>()),
    ) -> Machine {
        Machine {
            slots,
            load: load.min(slots),
            speed_factor,
            healthy,
            supported_features: if kvm { vec!["kvm".to_owned()] } else { Vec::new() },
            past: past.map(|(count, median_seconds)| PastBuilds { count, median_seconds }),
            busy_seconds,
            missing_bytes,
            bytes_per_second,
            connect_ms,
            ..Machine::default()
        }
    }
}

proptest! {
    /// Every decision can be carried out, is the same each time and has a reason. A failed machine
    /// is used only if all have failed.
    #[test]
    fn every_decision_can_be_carried_out(
        machines in prop::collection::vec(any_machine(), 1..9),
        expected in prop::option::of(0.0f64..1e5),
        able: bool,
        willing: bool,
        factor in prop::option::of(0.01f64..20.0),
        waiting: u32,
    ) {
        let machines: Vec<Machine> = machines
            .into_iter()
            .enumerate()
            .map(|(index, machine)| Machine { uri: format!("ssh://m{index}"), ..machine })
            .collect();
        let candidate = Candidate { expected_seconds: expected, ..Candidate::default() };
        let local = LocalMachine { able, willing, speed_factor: factor, waiting, ..LocalMachine::default() };
        let decision = decide(&Options::default(), &candidate, &machines, &local);
        prop_assert_eq!(&decision, &decide(&Options::default(), &candidate, &machines, &local));
        prop_assert!(!decision.reason.is_empty());
        match decision.action {
            Action::Machines(uris) => {
                let chosen: Vec<&Machine> = uris.iter().map(|uri| machines.iter().find(|m| m.uri == *uri).unwrap()).collect();
                prop_assert!(!chosen.is_empty());
                prop_assert!(chosen.is_sorted_by_key(|machine| !free(machine)), "free ones first");
                let healthy = |machine: &Machine| machine.healthy && machine.slots > 0;
                if machines.iter().any(healthy) {
                    prop_assert!(chosen.iter().all(|machine| healthy(machine)));
                }
            }
            Action::Local => prop_assert!(able && willing),
            other => prop_assert!(false, "{:?}: this rule always names machines or this machine", other),
        }
    }
}
