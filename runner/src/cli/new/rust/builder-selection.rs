//! A policy that prefers machines whose host name begins with `fast`.

use hookrun_sdk::BuilderSelection;
use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};

struct Plugin;

fn rank(mut machines: Vec<Machine>) -> Vec<String> {
    machines.sort_by_key(|machine| !machine.host().starts_with("fast"));
    machines.into_iter().map(|machine| machine.uri).collect()
}

impl BuilderSelection for Plugin {
    fn select(
        _candidate: Candidate,
        machines: Vec<Machine>,
        _local: LocalMachine,
    ) -> Result<Decision, String> {
        Ok(Decision::machines(rank(machines), "fast machines first"))
    }
}

hookrun_sdk::plugin! {
    plugin: Plugin,
    hooks: [BuilderSelection],
}

#[test]
fn fast_machines_are_first() {
    let machine = |uri: &str| Machine { uri: uri.to_owned(), ..Machine::default() };
    let ranked = rank(vec![machine("ssh://slow"), machine("ssh-ng://me@fast1:22")]);
    assert_eq!(ranked, ["ssh-ng://me@fast1:22", "ssh://slow"]);
}
