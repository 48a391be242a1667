//! The WASI of a guest: clocks and random numbers, from sources that can be replaced, and nothing
//! else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hookrun_capability::clock::Clock;
use hookrun_capability::random::Random;
use hookrun_tests::lab::{PluginTable, toml};
use hookrun_tests::sandbox::{Sandbox, built};

fn greedy(want: &str) -> PluginTable {
    PluginTable::guest("greedy").config(toml! { want = want }).grant("nix-store", "outputs")
}

#[tokio::test]
async fn a_guest_sees_no_files_environment_or_arguments() {
    let sandbox = Sandbox::new();
    let report = sandbox.run(greedy("look-around")).await;
    assert_eq!(report.outcome.class().as_str(), "done", "{:?}", report.outcome);
    insta::assert_snapshot!(report.outcome.message());
    assert!(report.usage.calls.contains_key("wasi:sockets/tcp-create-socket.create-tcp-socket"));
}

/// A clock that only sleeping advances.
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

/// Random numbers that count up.
#[derive(Debug, Default)]
struct Counting(AtomicU8);

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn clocks_and_random_numbers_can_be_replaced() {
    let sandbox = Sandbox::new();
    let (plugin, services) = sandbox.load(greedy("look-up"));
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
