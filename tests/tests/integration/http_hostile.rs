//! `wasi:http` with hostile guests and servers: ambiguous URLs, smuggled headers, floods, malformed
//! answers, and servers that do not answer.

use hookrun_nix::outcome::Outcome;
use hookrun_tests::lab::{PluginTable, toml};
use hookrun_tests::web::{WebSandbox, WebServer, get, post, raw, raw_then_silence, sends};
use toml::Table;

#[tokio::test]
async fn ambiguous_urls_are_refused_before_a_request_is_sent() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let port = server.port();
    let urls = [
        "http://2130706433:PORT/v1/x",
        "http://0x7f000001:PORT/v1/x",
        "http://0177.0.0.1:PORT/v1/x",
        "http://127.1:PORT/v1/x",
        "http://127.0.0.1.:PORT/v1/x",
        "http://me:secret@127.0.0.1:PORT/v1/x",
        "http://127.0.0.1:PORT/v1/../v2/x",
        "http://127.0.0.1:PORT/v1/%2e%2e/v2/x",
        "http://127.0.0.1:PORT/v1/%252e%252e/v2/x",
        "http://127.0.0.1:PORT/v1/..%2fv2",
        "http://127.0.0.1:PORT/v1\\..\\v2",
        "http://127.0.0.1:PORT/v1/%00",
        "ftp://127.0.0.1:PORT/v1/x",
    ];
    let requests: Vec<Table> =
        urls.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    let granted = format!("http://127.0.0.1:{port}/v1/");
    let done = sandbox.run(sends(requests).grant_http(&granted, Table::new())).await;
    for (url, answer) in urls.iter().zip(done.answers()) {
        assert!(answer.starts_with("Invalid: "), "{url}: {answer}");
    }
    assert!(!done.everything().contains("secret"), "{}", done.log());
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn a_limit_is_a_code_for_the_guest_and_a_key_for_the_operator() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    // A server that accepts connections but not TLS, and one that stops in the middle of its
    // answer.
    let mute = format!("https://127.0.0.1:{}", raw_then_silence(b"").await);
    let half = raw_then_silence(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await;
    let half = format!("http://127.0.0.1:{half}");
    let post = |more: Table| post(&format!("{base}/"), more);
    let get_from_server = |path: &str| get(&format!("{base}{path}"));
    let granted = |plugin: PluginTable| {
        plugin
            .grant_http(&base, toml! { methods = ["GET", "POST"] })
            .grant_http(&mute, Table::new())
            .grant_http(&half, Table::new())
    };
    for (request, key, limit) in [
        (post(toml! { body-bytes = 70_000 }), "http-request-bytes", "64KiB"),
        (get_from_server("/bytes/70000"), "http-response-bytes", "64KiB"),
        (post(toml! { fillers = 20 }), "http-header-bytes", "16KiB"),
        (get_from_server("/header/20000"), "http-header-bytes", "16KiB"),
        (get_from_server("/never"), "http-first-byte-time", "100ms"),
        (get(&format!("{mute}/")), "http-connect-time", "100ms"),
        (get(&format!("{half}/")), "http-between-bytes-time", "100ms"),
    ] {
        let done = sandbox.run(granted(sends([request]).limit(key, limit))).await;
        let kind = if key.ends_with("time") { "Transient: " } else { "Limit: " };
        assert!(done.answer().starts_with(kind), "{key}: {} {}", done.answer(), done.log());
        let log = done.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(&format!("plugin `x` reached its limit `{key}` (")), "{log}");
        assert!(
            log.contains(&format!("write `{key} = ")) && log.ends_with("under [plugins.x.limits]"),
            "{log}"
        );
    }
    // Exactly as much as the default limits allow.
    let requests = [post(toml! { body-bytes = 8_388_608 }), get_from_server("/bytes/4194304")];
    let done = sandbox.run(granted(sends(requests))).await;
    assert_eq!(done.answers(), ["200: hello 8388608", "200: 4194304 bytes"], "{}", done.log());
}

#[tokio::test]
async fn requests_beyond_the_limit_of_connections_are_refused() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let request = |count: u32| toml! { url = (base.as_str()) at-once = count };
    let plugin = sends([request(5), request(3)]);
    let done =
        sandbox.run(plugin.limit("http-connections", 3).grant_http(&base, Table::new())).await;
    assert_eq!(done.answers(), ["3 of 5 were answered", "3 of 3 were answered"], "{}", done.log());
    let log = done.log();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(
        log.contains("plugin `x` reached its limit `http-connections` (3)")
            && log.contains("write `http-connections = 6`"),
        "{log}"
    );
}

/// The interface has no code for headers that are far beyond the limit.
#[tokio::test]
async fn a_flood_of_headers_ends_the_run() {
    let sandbox = WebSandbox::new();
    let url = "http://127.0.0.1:9/";
    let plugin = sends([toml! { url = url fillers = 100 }]);
    let done =
        sandbox.run(plugin.limit("http-header-bytes", "4KiB").grant_http(url, Table::new())).await;
    match &done.report.outcome {
        Outcome::LimitReached { limit, message } => {
            assert_eq!(limit, "http-header-bytes");
            assert!(message.contains("write `http-header-bytes = "), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_wall_time_of_the_run_ends_a_request() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let url = format!("http://127.0.0.1:{}/never", server.port());
    let plugin = sends([get(&url)]).limit("wall-time", "300ms").grant_http(&url, Table::new());
    let done = sandbox.run(plugin).await;
    assert_eq!(done.report.outcome.class().as_str(), "limit", "{:?}", done.report);
}

#[tokio::test]
async fn headers_that_could_smuggle_a_request_are_refused() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let headers = [
        (toml! { headers = [["x-a", "1\r\nx-b: 2"]] }, "malformed"),
        (toml! { headers = [["x-a\r\nx-b", "1"]] }, "malformed"),
        (toml! { headers = [["x a", "1"]] }, "malformed"),
        (toml! { headers = [["x-a", "1\0"]] }, "malformed"),
        (toml! { headers = [["transfer-encoding", "chunked"]] }, "is reserved for the host"),
        (toml! { headers = [["Host", "other.example"]] }, "is reserved for the host"),
        (toml! { headers = [["connection", "upgrade"]] }, "is reserved for the host"),
        (toml! { headers = [["expect", "100-continue"]] }, "is reserved for the host"),
        (toml! { headers = [["te", "trailers"]] }, "is reserved for the host"),
        (toml! { headers = [["content-length", "4"], ["content-length", "5"]] }, "malformed"),
        (toml! { headers = [["content-length", "+4"]] }, "malformed"),
        (toml! { headers = [["content-length", "3"]] }, ""),
        (toml! { headers = [["content-length", "5"]] }, ""),
    ];
    let requests = headers.iter().map(|(headers, _)| {
        let mut request = post(&base, toml! { body = "text" });
        request.extend(headers.clone());
        request
    });
    let plugin =
        sends(requests.collect::<Vec<Table>>()).grant_http(&base, toml! { methods = ["POST"] });
    let done = sandbox.run(plugin).await;
    for ((header, expected), answer) in headers.iter().zip(done.answers()) {
        assert!(!answer.starts_with("200") && answer.contains(expected), "{header}: {answer}");
    }
    assert!(
        server.seen().iter().all(|seen| seen.body.len() < 4),
        "no body is longer than its length: {:?}",
        server.seen()
    );
}

#[tokio::test]
async fn malformed_answers_are_errors() {
    let sandbox = WebSandbox::new();
    for (answer, kind) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello"[..],
            "Permanent: ",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nbroken header\r\n\r\nhell", "Permanent: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", "Transient: "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "Permanent: "),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "Permanent: "),
        (b"SSH-2.0-OpenSSH\r\n", "Permanent: "),
        (b"", "Transient: "),
    ] {
        let url = format!("http://127.0.0.1:{}/", raw(answer).await);
        let done = sandbox.run(sends([get(&url)]).grant_http(&url, Table::new())).await;
        let shown = String::from_utf8_lossy(answer);
        assert!(done.answer().contains(kind.trim()), "{shown}: {} {}", done.answer(), done.log());
        assert_eq!(done.log().lines().count(), 1, "{shown}: {}", done.log());
    }
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_a_transient_failure() {
    let sandbox = WebSandbox::new();
    // A bound socket that does not listen: no other process can have the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://127.0.0.1:{}/", socket.local_addr().unwrap().port());
    let done = sandbox.run(sends([get(&url)]).grant_http(&url, Table::new())).await;
    assert!(done.answer().starts_with("Transient: "), "{}", done.answer());
    assert!(done.log().contains("no connection to 127.0.0.1:"), "{}", done.log());
}
