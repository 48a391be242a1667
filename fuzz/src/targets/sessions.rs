//! Files in `builders/` that sessions of other users write: waiting, building and reserved.

use std::path::Path;
use std::sync::LazyLock;

use hookrun_builders::slots::reservations::{Account, Reserved};
use hookrun_builders::slots::sessions::SessionState;
use hookrun_config::Config;

/// Two machines with one resource each, and one that all share.
const CONFIG: &str = "
[builders.machine-resources.\"ssh://m\"]
gpu = 2
[builders.shared-resources]
licence = 1
";

pub(crate) fn run(data: &[u8]) {
    static RESOURCES: LazyLock<hookrun_config::Resources> = LazyLock::new(|| {
        Config::parse(Path::new("hookrun.toml"), CONFIG).unwrap().builders.resources
    });
    if let Ok(live) = serde_json::from_slice::<SessionState>(data) {
        let text = serde_json::to_vec(&live).unwrap();
        let again: SessionState =
            serde_json::from_slice(&text).expect("what is written can be read");
        assert_eq!((again.pid, again.activity), (live.pid, live.activity));
    }
    // One file a line: together they may take more than there is.
    let lines = data.split(|byte| *byte == b'\n');
    let reserved: Vec<Reserved> =
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let mut account = Account::of(&RESOURCES, reserved.iter().cloned());
    for Reserved { machine, takes, .. } in &reserved {
        let _ = (account.short(machine, takes), account.of_machine(machine));
        account.take(machine, takes);
        account.give_back(machine, takes);
    }
}
