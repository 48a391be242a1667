//! Every limit of the table is hit by a compiled guest, and what is said then names limit, use and
//! the line to write.
//!
//! A limit without a row here fails [`no_limit_is_without_a_test`]: add a guest that hits it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hookrun_builders::{Candidate, LocalMachine};
use hookrun_capability::object_store::ObjectStores;
use hookrun_config::Limit;
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_tests::sandbox::{Sandbox, built};

/// What a guest does, and how that ends.
struct Hit {
    limit: Limit,
    guest: &'static str,
    /// The rest of the plugin's table.
    table: &'static str,
    ends: Ends,
}

enum Ends {
    /// The run.
    Run,
    /// The call, with a `limit` for the guest.
    Call,
    /// Nothing; the log says so.
    Log,
}

const fn hit(limit: Limit, guest: &'static str, table: &'static str, ends: Ends) -> Hit {
    Hit { limit, guest, table, ends }
}

/// One row for each way into a limit.
const HITS: &[Hit] = &[
    hit(
        Limit::WallTime,
        "faulty",
        "config = { fault = \"loop\" }\nlimits = { wall-time = \"200ms\" }",
        Ends::Run,
    ),
    hit(
        Limit::WallTime,
        "greedy",
        "config = { want = \"sleep\" }\nlimits = { wall-time = \"200ms\" }",
        Ends::Run,
    ),
    hit(
        Limit::WallTime,
        "greedy",
        "config = { want = \"nap\" }\nlimits = { wall-time = \"200ms\" }",
        Ends::Run,
    ),
    hit(
        Limit::Memory,
        "faulty",
        "config = { fault = \"memory\" }\nlimits = { memory = \"16MiB\" }",
        Ends::Run,
    ),
    hit(
        Limit::TableElements,
        "faulty",
        "config = { fault = \"trap\" }\nlimits = { table-elements = 1 }",
        Ends::Run,
    ),
    hit(
        Limit::Instances,
        "faulty",
        "config = { fault = \"trap\" }\nlimits = { instances = 1 }",
        Ends::Run,
    ),
    hit(Limit::Stack, "faulty", "config = { fault = \"stack\" }", Ends::Run),
    hit(
        Limit::HostCalls,
        "greedy",
        "config = { want = \"log\" }\nlimits = { host-calls = 50 }",
        Ends::Run,
    ),
    hit(
        Limit::WasiCalls,
        "greedy",
        "config = { want = \"clock\" }\nlimits = { wasi-calls = 50 }",
        Ends::Run,
    ),
    hit(
        Limit::Handles,
        "greedy",
        "config = { want = \"nars\" }\nlimits = { handles = 10 }",
        Ends::Call,
    ),
    hit(Limit::Handles, "greedy", "config = { want = \"timers\" }", Ends::Run),
    hit(Limit::Handles, "greedy", "config = { want = \"poll\", times = 30000 }", Ends::Run),
    hit(
        Limit::CallBytes,
        "faulty",
        "config = { fault = \"call-bytes\" }\ngrant = { state = true }",
        Ends::Run,
    ),
    hit(
        Limit::CallBytes,
        "greedy",
        "config = { want = \"state-key\", times = 2000 }\nlimits = { call-bytes = \"1KiB\" }",
        Ends::Call,
    ),
    hit(
        Limit::CallBytes,
        "greedy",
        "config = { want = \"infos\", times = 20000 }\nlimits = { call-bytes = \"2MiB\" }",
        Ends::Call,
    ),
    hit(
        Limit::HostBytes,
        "faulty",
        "config = { fault = \"log\" }\nlimits = { host-bytes = \"1MiB\" }",
        Ends::Run,
    ),
    hit(Limit::ListItems, "greedy", "config = { want = \"exists\", times = 30000 }", Ends::Call),
    hit(
        Limit::ListItems,
        "greedy",
        "config = { want = \"poll\", times = 300 }\nlimits = { list-items = 200 }",
        Ends::Run,
    ),
    hit(Limit::RandomBytes, "greedy", "config = { want = \"random\" }", Ends::Run),
    hit(Limit::LogBytes, "faulty", "config = { fault = \"log\" }", Ends::Log),
    hit(Limit::LogBytes, "greedy", "config = { want = \"print\", times = 1000 }", Ends::Log),
    hit(Limit::OutputBytes, "faulty", "config = { fault = \"output\" }", Ends::Run),
    hit(
        Limit::StateBytes,
        "faulty",
        "config = { fault = \"state\" }\ngrant = { state = true }",
        Ends::Call,
    ),
    hit(
        Limit::StateKeys,
        "greedy",
        "config = { want = \"state-keys\", times = 30 }\nlimits = { state-keys = 20 }",
        Ends::Call,
    ),
    hit(
        Limit::StateKeyBytes,
        "greedy",
        "config = { want = \"state-key\", times = 513 }",
        Ends::Call,
    ),
    hit(
        Limit::Mails,
        "greedy",
        "config = { want = \"mails\", to = \"root@localhost\" }",
        Ends::Call,
    ),
    hit(
        Limit::MailBytes,
        "greedy",
        "config = { want = \"mail-bytes\", times = 2000000, to = \"root@localhost\" }",
        Ends::Call,
    ),
];

/// Hit by the tests of this file that need more than a row, and by those of other rooms.
const ELSEWHERE: &[(Limit, &str)] = &[
    (Limit::SelectionTime, "a_selection_ends_too"),
    (Limit::StreamTime, "streams_have_a_time_of_their_own"),
    (Limit::CompileTime, "runner.rs: a_compiler_that_takes_too_much_is_stopped"),
    (Limit::CompileMemory, "runner.rs: a_compiler_that_takes_too_much_is_stopped"),
    (Limit::HttpConnections, "http_hostile.rs: too_many_requests_at_once"),
    (
        Limit::HttpHeaderBytes,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
    (
        Limit::HttpRequestBytes,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
    (
        Limit::HttpResponseBytes,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
    (
        Limit::HttpConnectTime,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
    (
        Limit::HttpFirstByteTime,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
    (
        Limit::HttpBetweenBytesTime,
        "http_hostile.rs: limits_are_codes_for_the_guest_and_keys_for_the_operator",
    ),
];

/// What [`greedy`](HITS) wants beside what its table says.
const GRANT: &str = "grant = { nix-store = \"outputs\", object-store = [\"cache\"], mail = [\"default\"], state = true }";

fn with_grant(hit: &Hit) -> String {
    if hit.guest == "greedy" { format!("{}\n{GRANT}", hit.table) } else { hit.table.to_owned() }
}

/// What was said about a limit: how the run ended, or the last line of its log.
fn said(report: &RunReport, hit: &Hit) -> String {
    let key = hit.limit.key();
    match (&hit.ends, &report.outcome) {
        (Ends::Run, Outcome::LimitReached { limit, message }) if limit == key => message.clone(),
        (Ends::Call, Outcome::Failed { message, transient: false, .. }) => message.clone(),
        (Ends::Log, Outcome::Done { .. }) => report.log.last().unwrap().message.clone(),
        (_, other) => panic!("`{key}` by {} ({}): {other:?}", hit.guest, hit.table),
    }
}

#[test]
fn no_limit_is_without_a_test() {
    let tested: BTreeSet<Limit> =
        HITS.iter().map(|hit| hit.limit).chain(ELSEWHERE.iter().map(|(limit, _)| *limit)).collect();
    let untested: Vec<&str> = Limit::ALL
        .iter()
        .filter(|limit| !tested.contains(limit))
        .map(|limit| limit.key())
        .collect();
    assert!(
        untested.is_empty(),
        "no guest hits these: {untested:?}; add a row to HITS, or a test and a line to ELSEWHERE"
    );
}

#[tokio::test]
async fn every_limit_is_hit_and_named() {
    let sandbox = Sandbox::new();
    let mut messages = String::new();
    for hit in HITS {
        let report = sandbox.run(hit.guest, &with_grant(hit)).await;
        let message = said(&report, hit);
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
    let table = "config = { fault = \"loop\" }\nlimits = { selection-time = \"200ms\" }";
    let (plugin, services) = sandbox.load("faulty", table);
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

/// A server that takes a request, waits, and then says that all is well, or says nothing.
fn slow_server(wait: Option<Duration>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _read = connection.read(&mut [0; 8 << 10]);
            if let Some(wait) = wait {
                std::thread::sleep(wait);
                let answer =
                    b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                std::io::Write::write_all(&mut connection, answer).unwrap();
            }
            held.push(connection);
        }
    });
    port
}

/// How a run ends that does `config` with an object store on [`slow_server`].
async fn with_slow_store(config: &str, limits: &str, wait: Option<Duration>) -> Outcome {
    let sandbox = Sandbox::new();
    let table = format!(
        "config = {{ {config} }}\n{GRANT}\nlimits = {{ {limits} }}\n[object-stores.cache]\nurl = \"http://127.0.0.1:{}/\"\n",
        slow_server(wait)
    );
    let config = sandbox.config("greedy", &table);
    let (plugin, services) = sandbox.load("greedy", &table);
    let services = services.with_object_stores(Arc::new(ObjectStores::new(&config, &sandbox.dirs)));
    plugin.run_event(&services, &built(), 1).await.outcome
}

/// A stream may take longer than all the rest of the run, and no longer than its own limit.
#[tokio::test]
async fn streams_have_a_time_of_their_own() {
    let slow = with_slow_store(
        "want = \"upload\"",
        "wall-time = \"1s\"",
        Some(Duration::from_millis(1500)),
    )
    .await;
    assert_eq!(slow.class().as_str(), "done", "{slow:?}");
    let stuck = with_slow_store("want = \"upload\"", "stream-time = \"500ms\"", None).await;
    insta::assert_snapshot!(stuck.message(), @r#"plugin `x` reached its limit `stream-time` (500ms) in the host call `object-store.put-nar`; to allow more, write `stream-time = "1s"` under [plugins.x.limits]"#);
}

/// Every call that waits for a store has the time of streams, and says where it stood.
#[tokio::test]
async fn a_call_that_waits_for_a_store_has_the_time_of_streams() {
    let stuck =
        with_slow_store("want = \"exists\", times = 1", "stream-time = \"500ms\"", None).await;
    insta::assert_snapshot!(stuck.message(), @r#"plugin `x` reached its limit `stream-time` (500ms) in the host call `object-store.exists`; to allow more, write `stream-time = "1s"` under [plugins.x.limits]"#);
}

/// Nix is blocked by a gate: what it waits for is its time.
#[tokio::test]
async fn a_gate_ends_with_its_wall_time_unless_it_has_another() {
    let stuck = with_slow_store(
        "want = \"exists\", times = 1",
        "wall-time = \"500ms\" }\ngate = true\nretry = { attempts = 1",
        None,
    )
    .await;
    assert!(stuck.message().contains("its limit `wall-time` (500ms)"), "{stuck:?}");
}

/// Sleepers and loops that meet their ends leave their neighbours on the same engine and the same
/// thread alone.
#[tokio::test]
async fn a_time_out_is_nobody_elses() {
    let sandbox = Sandbox::new();
    let short = |want: &str| {
        format!("config = {{ want = \"{want}\" }}\n{GRANT}\nlimits = {{ wall-time = \"300ms\" }}")
    };
    let (sleeper, services) = sandbox.load("greedy", &short("sleep"));
    let (looping, _) =
        sandbox.load("faulty", "config = { fault = \"loop\" }\nlimits = { wall-time = \"300ms\" }");
    let (neighbour, _) = sandbox.load(
        "greedy",
        &format!("config = {{ want = \"use-all\", to = \"root@localhost\" }}\n{GRANT}"),
    );
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
