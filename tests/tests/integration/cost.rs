//! What the choke point costs: nanoseconds for one host call, from the guest and back. A figure to
//! look at, not a test.
//!
//! `cargo nextest run --workspace -E 'test(cost::)' --run-ignored all --no-capture`

use std::time::Duration;

use hookrun_tests::sandbox::{Sandbox, built};

/// Calls of the short run and of the long one; what both have in common, such as making the
/// instance, is taken off.
const CALLS: [u32; 2] = [1_000, 101_000];
/// Of which the fastest counts: the rest is the machine's other work.
const ROUNDS: usize = 15;

const LIMITS: &str = "limits = { wasi-calls = 1000000, host-calls = 1000000, host-bytes = \"1GiB\", log-bytes = \"1KiB\", wall-time = \"1m\" }";

async fn nanoseconds(want: &str) -> u128 {
    let sandbox = Sandbox::new();
    let mut fastest = [Duration::MAX; 2];
    for (fastest, times) in fastest.iter_mut().zip(CALLS) {
        let table = format!(
            "config = {{ want = \"{want}\", times = {times} }}\ngrant = {{ nix-store = \"outputs\" }}\n{LIMITS}"
        );
        let (plugin, services) = sandbox.load("greedy", &table);
        for _ in 0..ROUNDS {
            let report = plugin.run_event(&services, &built(), 1).await;
            assert_eq!(report.outcome.class().as_str(), "done", "{:?}", report.outcome);
            *fastest = report.usage.wall.min(*fastest);
        }
    }
    let [short, long] = fastest;
    let [few, many] = CALLS;
    long.saturating_sub(short).as_nanos() / u128::from(many - few)
}

#[tokio::test]
#[ignore = "prints a figure, and takes a while"]
async fn the_cost_of_one_host_call_is_printed() {
    for (want, what) in [
        ("clock", "the monotonic clock (a call that does not wait)"),
        ("log", "a log message over its limit (a call that may wait)"),
        ("denied", "a refusal of `state.get` with its message"),
    ] {
        println!("{what}: {} ns", nanoseconds(want).await);
    }
}
