//! What the stock hook, ssh and builders write on standard error while a build is placed and runs.

use std::time::Instant;

use hookrun::builders::speech::Listener;

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "speech",
    about: "words of the stock hook, ssh and builders",
    dictionary: &[
        "# accept\n",
        "# decline\n",
        "# postpone\n",
        "# decline-permanently\n",
        "@nix {\"action\":\"start\",\"id\":",
        "@nix {\"action\":\"stop\",\"id\":",
        "@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"",
        "\"type\":105",
        "cannot build on 'ssh://m': ",
        "Host key verification failed.",
        "; last 10 log lines:\n",
        "failed with exit code 1",
        "\u{1b}[31;1merror:\u{1b}[0m ",
    ],
    run,
};

fn run(data: &[u8]) {
    let now = Instant::now();
    let mut listener = Listener::of(1, "ssh://m");
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        listener.hear(line, now);
    }
    let _ = listener.held().len();
    let closed = listener.close_activities();
    assert!(
        closed
            .split(|byte| *byte == b'\n')
            .all(|line| line.is_empty() || line.starts_with(b"@nix ")),
        "only activities are closed"
    );
    for code in [None, Some(0), Some(1), Some(255)] {
        let _ = listener.ending(code);
    }
}
