//! A compiled guest reaches each limit, and the message names the limit, its value and the line to
//! write.
//!
//! A limit without a row fails [`every_limit_has_a_test`]: add a guest that reaches it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hookrun_builders::{Candidate, LocalMachine};
use hookrun_capability::object_store::ObjectStores;
use hookrun_config::Limit;
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_tests::lab::{ConfigFile, PluginTable, toml};
use hookrun_tests::sandbox::{Sandbox, built};

/// A plugin that reaches a limit.
struct Hit {
    limit: Limit,
    plugin: PluginTable,
    ends: Ends,
}

enum Ends {
    /// The run ends.
    Run,
    /// The call fails with `limit`.
    Invocation,
    /// The run continues, and the log names the limit.
    Log,
}

fn hit(limit: Limit, ends: Ends, plugin: PluginTable) -> Hit {
    Hit { limit, plugin, ends }
}

/// The guest `faulty` with this fault.
fn faulty(fault: &str) -> PluginTable {
    PluginTable::guest("faulty").config(toml! { fault = fault })
}

/// The guest `greedy` with all grants.
fn greedy(want: &str) -> PluginTable {
    PluginTable::guest("greedy")
        .config(toml! { want = want })
        .grant("nix-store", "outputs")
        .grant("object-store", ["cache"])
        .grant("mail", ["default"])
        .grant("state", true)
}

/// The guest `greedy` that does something this many times.
fn greedy_times(want: &str, times: u32) -> PluginTable {
    greedy(want).config(toml! { times = times })
}

/// Returns one row for each way to reach a limit.
fn hits() -> Vec<Hit> {
    let to_root = toml! { to = "root@localhost" };
    let short = |plugin: PluginTable| plugin.limit("wall-time", "200ms");
    vec![
        hit(Limit::WallTime, Ends::Run, short(faulty("loop"))),
        hit(Limit::WallTime, Ends::Run, short(greedy("sleep"))),
        hit(Limit::WallTime, Ends::Run, short(greedy("nap"))),
        hit(Limit::Memory, Ends::Run, faulty("memory").limit("memory", "16MiB")),
        hit(Limit::TableElements, Ends::Run, faulty("trap").limit("table-elements", 1)),
        hit(Limit::Instances, Ends::Run, faulty("trap").limit("instances", 1)),
        hit(Limit::Stack, Ends::Run, faulty("stack")),
        hit(Limit::HostCalls, Ends::Run, greedy("log").limit("host-calls", 50)),
        hit(Limit::WasiCalls, Ends::Run, greedy("clock").limit("wasi-calls", 50)),
        hit(Limit::Handles, Ends::Invocation, greedy("nars").limit("handles", 10)),
        hit(Limit::Handles, Ends::Run, greedy("timers")),
        hit(Limit::Handles, Ends::Run, greedy_times("poll", 30_000)),
        hit(Limit::CallBytes, Ends::Run, faulty("call-bytes").grant("state", true)),
        hit(
            Limit::CallBytes,
            Ends::Invocation,
            greedy_times("state-key", 2000).limit("call-bytes", "1KiB"),
        ),
        hit(
            Limit::CallBytes,
            Ends::Invocation,
            greedy_times("infos", 20_000).limit("call-bytes", "2MiB"),
        ),
        hit(Limit::HostBytes, Ends::Run, faulty("log").limit("host-bytes", "1MiB")),
        hit(Limit::ListItems, Ends::Invocation, greedy_times("exists", 30_000)),
        hit(Limit::ListItems, Ends::Run, greedy_times("poll", 300).limit("list-items", 200)),
        hit(Limit::RandomBytes, Ends::Run, greedy("random")),
        hit(Limit::LogBytes, Ends::Log, faulty("log")),
        hit(Limit::LogBytes, Ends::Log, greedy_times("print", 1000)),
        hit(Limit::OutputBytes, Ends::Run, faulty("output")),
        hit(Limit::StateBytes, Ends::Invocation, faulty("state").grant("state", true)),
        hit(
            Limit::StateKeys,
            Ends::Invocation,
            greedy_times("state-keys", 30).limit("state-keys", 20),
        ),
        hit(Limit::StateKeyBytes, Ends::Invocation, greedy_times("state-key", 513)),
        hit(Limit::Mails, Ends::Invocation, greedy("mails").config(to_root.clone())),
        hit(
            Limit::MailBytes,
            Ends::Invocation,
            greedy_times("mail-bytes", 2_000_000).config(to_root),
        ),
    ]
}

/// The limits that other tests reach: the rest of this file, and other files.
const ELSEWHERE: &[(Limit, &str)] = &[
    (Limit::SelectionTime, "a_policy_ends_at_its_limits"),
    (Limit::StreamTime, "streams_have_their_own_time_limit"),
    (Limit::CompileTime, "runner.rs: a_compilation_that_reaches_a_limit_is_stopped"),
    (Limit::CompileMemory, "runner.rs: a_compilation_that_reaches_a_limit_is_stopped"),
    (
        Limit::HttpConnections,
        "http_hostile.rs: requests_beyond_the_limit_of_connections_are_refused",
    ),
    (
        Limit::HttpHeaderBytes,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
    (
        Limit::HttpRequestBytes,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
    (
        Limit::HttpResponseBytes,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
    (
        Limit::HttpConnectTime,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
    (
        Limit::HttpFirstByteTime,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
    (
        Limit::HttpBetweenBytesTime,
        "http_hostile.rs: a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator",
    ),
];

/// Returns the message about a limit: that of the outcome, or the last line of the log.
fn said(report: &RunReport, hit: &Hit) -> String {
    let key = hit.limit.key();
    match (&hit.ends, &report.outcome) {
        (Ends::Run, Outcome::LimitReached { limit, message }) if limit == key => message.clone(),
        (Ends::Invocation, Outcome::Failed { message, transient: false, .. }) => message.clone(),
        (Ends::Log, Outcome::Done { .. }) => report.log.last().unwrap().message.clone(),
        (_, other) => panic!("`{key}` by {:?}: {other:?}", hit.plugin),
    }
}

#[test]
fn every_limit_has_a_test() {
    let tested: BTreeSet<Limit> = hits()
        .iter()
        .map(|hit| hit.limit)
        .chain(ELSEWHERE.iter().map(|(limit, _)| *limit))
        .collect();
    let untested: Vec<&str> = Limit::ALL
        .iter()
        .filter(|limit| !tested.contains(limit))
        .map(|limit| limit.key())
        .collect();
    assert!(
        untested.is_empty(),
        "no guest reaches these: {untested:?}; add a row to `hits`, or a test and a line to `ELSEWHERE`"
    );
}

#[tokio::test]
async fn a_plugin_at_a_limit_fails_with_the_limit_its_use_and_the_line_to_write() {
    let sandbox = Sandbox::new();
    let mut messages = String::new();
    for hit in hits() {
        let report = sandbox.run(hit.plugin.clone()).await;
        let message = said(&report, &hit);
        let key = hit.limit.key();
        assert!(message.contains(&format!("its limit `{key}` (")), "{message}");
        assert!(
            message.contains(&format!("write `{key} = "))
                && message.ends_with("under [plugins.x.limits]"),
            "{message}"
        );
        writeln!(messages, "{message}").unwrap();
    }
    insta::assert_snapshot!(messages);
}

#[tokio::test]
async fn a_policy_ends_at_its_limits() {
    let sandbox = Sandbox::new();
    let (plugin, services) = sandbox.load(faulty("loop").limit("selection-time", "200ms"));
    let candidate = Candidate {
        drv_path: "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12.drv".to_owned(),
        name: "hello-2.12".to_owned(),
        system: "x86_64-linux".to_owned(),
        ..Candidate::default()
    };
    let (decision, report) =
        plugin.select(&services, &candidate, &[], &LocalMachine::default()).await;
    assert!(decision.is_err());
    insta::assert_snapshot!(report.outcome.message(), @r#"plugin `x` reached its limit `selection-time` (200ms); to allow more, write `selection-time = "400ms"` under [plugins.x.limits]"#);
}

/// Starts an empty store that reads a request, waits and answers, or never answers. Returns its
/// port.
fn slow_server(wait: Option<Duration>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 8 << 10];
            let _read = connection.read(&mut request);
            if let Some(wait) = wait {
                std::thread::sleep(wait);
                let status =
                    if request.starts_with(b"PUT ") { "201 Created" } else { "404 Not Found" };
                let headers = "content-length: 0\r\nconnection: close";
                write!(connection, "HTTP/1.1 {status}\r\n{headers}\r\n\r\n").unwrap();
            }
            held.push(connection);
        }
    });
    port
}

/// Returns the outcome of a run with an object store on [`slow_server`].
async fn with_slow_store(plugin: PluginTable, wait: Option<Duration>) -> Outcome {
    let sandbox = Sandbox::new();
    let store = toml! { url = (format!("http://127.0.0.1:{}/", slow_server(wait))) };
    let file = ConfigFile::from(plugin).object_store("cache", store);
    let config = sandbox.config(file.clone());
    let (plugin, services) = sandbox.load(file);
    let services = services.with_object_stores(Arc::new(ObjectStores::new(&config, &sandbox.dirs)));
    plugin.run_event(&services, &built(), 1).await.outcome
}

#[tokio::test]
async fn streams_have_their_own_time_limit() {
    let slow = with_slow_store(
        greedy("upload").limit("wall-time", "1s"),
        Some(Duration::from_millis(1500)),
    )
    .await;
    assert_eq!(slow.class().as_str(), "done", "{slow:?}");
    let stuck = with_slow_store(greedy("upload").limit("stream-time", "500ms"), None).await;
    insta::assert_snapshot!(stuck.message(), @r#"plugin `x` reached its limit `stream-time` (500ms) in the host call `object-store.put-nar`; to allow more, write `stream-time = "1s"` under [plugins.x.limits]"#);
}

#[tokio::test]
async fn a_call_that_waits_for_a_store_has_the_time_of_streams() {
    let plugin = greedy_times("exists", 1).limit("stream-time", "500ms");
    let stuck = with_slow_store(plugin, None).await;
    insta::assert_snapshot!(stuck.message(), @r#"plugin `x` reached its limit `stream-time` (500ms) in the host call `object-store.exists`; to allow more, write `stream-time = "1s"` under [plugins.x.limits]"#);
}

/// Nix is blocked while a gate runs, so the time of the store counts too.
#[tokio::test]
async fn a_call_of_a_gate_that_waits_for_a_store_ends_with_the_wall_time() {
    let plugin = greedy_times("exists", 1).limit("wall-time", "500ms");
    let stuck = with_slow_store(plugin.set("gate", true).retry("attempts", 1), None).await;
    assert!(stuck.message().contains("its limit `wall-time` (500ms)"), "{stuck:?}");
}

/// The plugins share the engine and the thread.
#[tokio::test]
async fn a_plugin_that_reaches_its_wall_time_does_not_affect_its_neighbours() {
    let sandbox = Sandbox::new();
    let short = |plugin: PluginTable| sandbox.load(plugin.limit("wall-time", "300ms"));
    let (sleeper, services) = short(greedy("sleep"));
    let (looping, _) = short(faulty("loop"));
    let (neighbour, _) = sandbox.load(greedy("use-all").config(toml! { to = "root@localhost" }));
    let event = built();
    let work = async {
        for attempt in 1..=20 {
            let report = neighbour.run_event(&services, &event, attempt).await;
            assert_eq!(report.outcome.class().as_str(), "done", "{:?}", report.outcome);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    let (slept, looped, ()) = tokio::join!(
        sleeper.run_event(&services, &event, 1),
        looping.run_event(&services, &event, 1),
        work
    );
    for (report, call) in [
        (slept, " in the host call `wasi:io/poll.pollable.block`;"),
        (looped, "(300ms); to allow more"),
    ] {
        assert_eq!(report.outcome.class().as_str(), "limit");
        assert!(report.outcome.message().contains(call), "{:?}", report.outcome);
    }
}
