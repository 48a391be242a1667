//! What WASI gives a guest: time and chance through the choke point, from sources that can be
//! exchanged; and beside those nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hookrun_capability::clock::Clock;
use hookrun_capability::random::Random;
use hookrun_tests::sandbox::{Sandbox, built};

const GRANT: &str = "grant = { nix-store = \"outputs\" }";

/// No file, no directory, no argument, no variable, no input, no socket, no name: refused with
/// WASI's own words.
#[tokio::test]
async fn a_guest_sees_no_files_environment_or_arguments() {
    let sandbox = Sandbox::new();
    let report =
        sandbox.run("greedy", &format!("config = {{ want = \"look-around\" }}\n{GRANT}")).await;
    assert_eq!(report.outcome.class().as_str(), "done", "{:?}", report.outcome);
    insta::assert_snapshot!(report.outcome.message());
    assert!(report.usage.calls.contains_key("wasi:sockets/tcp-create-socket.create-tcp-socket"));
}

/// Time stands still but for sleeping.
#[derive(Debug)]
struct Stopped(std::sync::Mutex<Duration>);

impl Clock for Stopped {
    fn wall(&self) -> Duration {
        Duration::from_secs(1_000_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(5000) + *self.0.lock().unwrap()
    }

    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        *self.0.lock().unwrap() += wait;
        Box::pin(std::future::ready(()))
    }
}

/// Counts.
#[derive(Debug, Default)]
struct Counting(AtomicU8);

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An hour of sleep takes no time, and chance is none, when the sources are exchanged.
#[tokio::test]
async fn time_and_chance_can_be_exchanged() {
    let sandbox = Sandbox::new();
    let (plugin, services) =
        sandbox.load("greedy", &format!("config = {{ want = \"look-up\" }}\n{GRANT}"));
    let mut said = Vec::new();
    for _ in 0..2 {
        let services = services
            .clone()
            .with_clock(Arc::new(Stopped(std::sync::Mutex::default())))
            .with_random(Arc::new(Counting::default()));
        let report = plugin.run_event(&services, &built(), 1).await;
        let wasi: u64 = report
            .usage
            .calls
            .iter()
            .filter(|(name, _)| name.starts_with("wasi:"))
            .map(|(_, count)| count)
            .sum();
        assert_eq!(wasi, report.usage.wasi_calls);
        assert_eq!(
            report.usage.calls.get("wasi:clocks/monotonic-clock.subscribe-instant"),
            Some(&1)
        );
        said.push(report.outcome.message().to_owned());
    }
    assert_eq!(said.first(), said.last());
    insta::assert_snapshot!(said.first().unwrap());
}
