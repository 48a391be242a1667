//! The build hook is asked to end (SIGTERM) or is killed, or its Nix is killed, at every stage of
//! the conversation. Nix never waits for an answer in vain, no process is left behind, the slot is
//! free at once, no build waits in the queue, the end does not count against a machine, and the
//! record has the outcome of the build.

mod conversation;
mod stage;

use std::collections::BTreeMap;

use hookrun_builders::choice::health::Probe;
use hookrun_builders::history::{BuildOutcome, Record, RowSelection};
use hookrun_tests::lab::{answers, build_hook, wait_for};

use conversation::{Conversation, is_gone, slot_of};
use stage::{ACCEPT, DECLINE, GOOD, MACHINE, NEVER, Progress, REFUSES, Stage};

/// How the conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interruption {
    /// The hook gets SIGTERM.
    Asked,
    /// The hook is killed.
    Killed,
    /// Nix is killed, and the kernel kills the hook, as Nix demands it (`PR_SET_PDEATHSIG`).
    NixKilled,
    /// Nix closes its ends of all pipes.
    NixGone,
}

/// Interrupts a conversation at every stage.
fn interrupt_at_every_stage(interruption: Interruption) {
    // If the kernel does not kill the hook, the hook notices that Nix is gone when it reads, waits
    // or writes.
    let stages = Stage::all()
        .into_iter()
        .filter(|stage| interruption != Interruption::NixGone || stage.stock_hook == REFUSES);
    for stage in stages {
        let at = format!("{interruption:?} {}", stage.name);
        let mut conversation = Conversation::reach(&stage);
        conversation.interrupt(interruption);
        let code = matches!(interruption, Interruption::Asked | Interruption::NixGone)
            .then(|| conversation.nix.wait().unwrap().code());

        // Nix gets at most one answer to each question, and never waits for one.
        conversation.listen();
        let mut said = stage.said.to_vec();
        if interruption == Interruption::Asked && !said.contains(&ACCEPT) {
            said.push(NEVER);
        }
        assert_eq!(conversation.directives(), said, "{at}: {}", conversation.heard);
        match (interruption, code) {
            (Interruption::Asked, code) => assert_eq!(code, Some(Some(1)), "{at}"),
            (Interruption::NixGone, code) => {
                assert_eq!(code, Some(Some(i32::from(stage.said == [ACCEPT]))), "{at}");
            }
            (Interruption::Killed | Interruption::NixKilled, _) => {}
        }

        // No process is left. An ssh that the hook could not kill ends with its streams.
        for file in ["stock", "ssh"] {
            if let Some(pid) = conversation.process(file)
                && (file == "stock" || interruption == Interruption::Asked)
            {
                wait_for(&format!("{at}: {file} ends"), || is_gone(pid));
            }
        }

        // Nothing is locked.
        assert_eq!(conversation.sessions(), [], "{at}");
        conversation.slot = None;
        drop(slot_of(&conversation.directory));
        assert!(Probe::take(&conversation.builders(), MACHINE).is_some(), "{at}");

        // The record has the outcome, and nothing against the machine. Only the end of Nix shows
        // that no more is recorded.
        if interruption == Interruption::Killed {
            conversation.nix.wait().unwrap();
        }
        let record = Record::read(&conversation.builders()).unwrap();
        let builds = record
            .as_ref()
            .map_or(Vec::new(), |record| record.builds(RowSelection::Last(9)).unwrap());
        let outcomes: Vec<_> = builds.iter().map(|build| build.outcome).collect();
        let expected =
            if stage.is_delegated() { &[Some(BuildOutcome::Abandoned)][..] } else { &[] };
        assert_eq!(outcomes, expected, "{at}: {builds:?}");
        let machines = record.map_or(BTreeMap::new(), |record| record.machines().unwrap());
        // The machine has refused the first question.
        let failures = u32::from(stage.said == [DECLINE]);
        assert_eq!(
            machines.get(MACHINE).map_or(0, |machine| machine.failures),
            failures,
            "{at}: {machines:?}"
        );

        // The next hook works as usual.
        let mut next = build_hook(conversation.directory.path(), GOOD);
        std::fs::write(conversation.directory.path().join("hookrun.toml"), "").unwrap();
        let next = answers(&mut next, &Progress::Inputs.bytes());
        assert_eq!(
            (next.directives, next.code),
            (vec![ACCEPT.to_owned()], Some(0)),
            "{at}: {:?}",
            next.messages
        );
    }
}

#[test]
fn a_hook_that_gets_sigterm_answers_and_leaves_nothing_behind() {
    interrupt_at_every_stage(Interruption::Asked);
}

#[test]
fn a_killed_hook_leaves_nothing_behind() {
    interrupt_at_every_stage(Interruption::Killed);
}

#[test]
fn a_hook_whose_nix_is_killed_leaves_nothing_behind() {
    interrupt_at_every_stage(Interruption::NixKilled);
}

#[test]
fn a_hook_whose_nix_closes_its_pipes_leaves_nothing_behind() {
    interrupt_at_every_stage(Interruption::NixGone);
}

#[test]
fn a_hook_that_gets_sigterm_ends_its_processes_although_nix_does_not_read() {
    const FLOODS: &str = "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo '# accept' >&2; echo m >&2; \
                          cat > /dev/null; echo $$ > $here/stock; while :; do echo a line of the log; done >&2";
    let stage = Stage {
        said: &[ACCEPT],
        stock_hook: FLOODS,
        reached: |conversation| conversation.process("stock").is_some(),
        ..Stage::of("while it writes without end", Progress::Inputs)
    };
    let mut conversation = Conversation::reach(&stage);
    let replies = conversation.replies.take().unwrap();
    // Nothing more can be written into a full pipe.
    wait_for("the pipe is full", || rustix::io::ioctl_fionread(&replies).unwrap() > 60_000);
    conversation.interrupt(Interruption::Asked);
    for file in ["stock", "ssh"] {
        let pid = conversation.process(file).unwrap();
        wait_for(file, || is_gone(pid));
    }
    let builds = Record::read(&conversation.builders())
        .unwrap()
        .unwrap()
        .builds(RowSelection::Last(9))
        .unwrap();
    assert!(
        matches!(&builds[..], [build] if build.outcome == Some(BuildOutcome::Abandoned)),
        "{builds:?}"
    );
}
