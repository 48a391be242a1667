//! `wasi:http` where somebody means no good, or nothing works: odd URLs, smuggled headers, floods,
//! malformed answers, silence.

use hookrun_nix::outcome::Outcome;
use hookrun_tests::web::{Scene, WebServer, get, grant, raw, raw_then_silence};

#[tokio::test]
async fn odd_urls_are_refused_before_anything_else() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
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
        "http://127.0.0.1:PORT/v1\\\\..\\\\v2",
        "http://127.0.0.1:PORT/v1/%00",
        "ftp://127.0.0.1:PORT/v1/x",
    ];
    let tables: Vec<String> =
        urls.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    let done =
        scene.run(&tables.join(", "), &grant(&format!("http://127.0.0.1:{port}/v1/"), "")).await;
    for (url, answer) in urls.iter().zip(done.answers()) {
        assert!(answer.starts_with("Invalid: "), "{url}: {answer}");
    }
    assert!(!done.everything().contains("secret"), "{}", done.log());
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn limits_are_codes_for_the_guest_and_keys_for_the_operator() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    // Takes a connection and never speaks TLS; and one that stops in the middle of its answer.
    let mute = format!("https://127.0.0.1:{}", raw_then_silence(b"").await);
    let half = raw_then_silence(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").await;
    let half = format!("http://127.0.0.1:{half}");
    let post = |what: &str| format!("{{ method = \"POST\", url = \"{base}/\", {what} }}");
    for (request, limits, key) in [
        (post("body-bytes = 70000"), "http-request-bytes = \"64KiB\"", "http-request-bytes"),
        (
            get(&format!("{base}/bytes/70000")),
            "http-response-bytes = \"64KiB\"",
            "http-response-bytes",
        ),
        (post("fillers = 20"), "http-header-bytes = \"16KiB\"", "http-header-bytes"),
        (
            get(&format!("{base}/header/20000")),
            "http-header-bytes = \"16KiB\"",
            "http-header-bytes",
        ),
        (get(&format!("{base}/never")), "http-first-byte-time = \"100ms\"", "http-first-byte-time"),
        (get(&format!("{mute}/")), "http-connect-time = \"100ms\"", "http-connect-time"),
        (
            get(&format!("{half}/")),
            "http-between-bytes-time = \"100ms\"",
            "http-between-bytes-time",
        ),
    ] {
        let grants = format!(
            "{}{}{}",
            grant(&base, "methods = [\"GET\", \"POST\"]"),
            grant(&mute, ""),
            grant(&half, "")
        );
        let done = scene.run(&request, &format!("[plugins.x.limits]\n{limits}\n{grants}")).await;
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
    // As much as is allowed passes.
    let rest = grant(&base, "methods = [\"GET\", \"POST\"]");
    let done = scene
        .run(
            &format!("{}, {}", post("body-bytes = 8388608"), get(&format!("{base}/bytes/4194304"))),
            &rest,
        )
        .await;
    assert_eq!(done.answers(), ["200: hello 8388608", "200: 4194304 bytes"], "{}", done.log());
}

#[tokio::test]
async fn too_many_requests_at_once() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let request = |at_once: u32| format!("{{ url = \"{base}\", at-once = {at_once} }}");
    let rest = format!("[plugins.x.limits]\nhttp-connections = 3\n{}", grant(&base, ""));
    let done = scene.run(&format!("{}, {}", request(5), request(3)), &rest).await;
    assert_eq!(done.answers(), ["3 of 5 were answered", "3 of 3 were answered"], "{}", done.log());
    let log = done.log();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(
        log.contains("plugin `x` reached its limit `http-connections` (3)")
            && log.contains("write `http-connections = 6`"),
        "{log}"
    );
}

/// A header table far beyond its limit ends the run: the interface has no code for it.
#[tokio::test]
async fn a_flood_of_headers_ends_the_run() {
    let scene = Scene::new();
    let rest = format!(
        "[plugins.x.limits]\nhttp-header-bytes = \"4KiB\"\n{}",
        grant("http://127.0.0.1:9/", "")
    );
    let done = scene.run("{ url = \"http://127.0.0.1:9/\", fillers = 100 }", &rest).await;
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
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let url = format!("http://127.0.0.1:{}/never", server.port());
    let rest = format!("[plugins.x.limits]\nwall-time = \"300ms\"\n{}", grant(&url, ""));
    let done = scene.run(&get(&url), &rest).await;
    assert_eq!(done.report.outcome.class().as_str(), "limit", "{:?}", done.report);
}

#[tokio::test]
async fn headers_that_could_smuggle_a_request_are_refused() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let headers = [
        ("[\"x-a\", \"1\\r\\nx-b: 2\"]", "malformed"),
        ("[\"x-a\\r\\nx-b\", \"1\"]", "malformed"),
        ("[\"x a\", \"1\"]", "malformed"),
        ("[\"x-a\", \"1\\u0000\"]", "malformed"),
        ("[\"transfer-encoding\", \"chunked\"]", "belongs to the host"),
        ("[\"Host\", \"other.example\"]", "belongs to the host"),
        ("[\"connection\", \"upgrade\"]", "belongs to the host"),
        ("[\"expect\", \"100-continue\"]", "belongs to the host"),
        ("[\"te\", \"trailers\"]", "belongs to the host"),
        ("[\"content-length\", \"4\"], [\"content-length\", \"5\"]", "malformed"),
        ("[\"content-length\", \"+4\"]", "malformed"),
        ("[\"content-length\", \"3\"]", ""),
        ("[\"content-length\", \"5\"]", ""),
    ];
    let requests: Vec<String> = headers
        .iter()
        .map(|(headers, _)| {
            format!(
                "{{ method = \"POST\", url = \"{base}\", body = \"text\", headers = [{headers}] }}"
            )
        })
        .collect();
    let done = scene.run(&requests.join(", "), &grant(&base, "methods = [\"POST\"]")).await;
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
    let scene = Scene::new();
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
        let done = scene.run(&get(&url), &grant(&url, "")).await;
        let shown = String::from_utf8_lossy(answer);
        assert!(done.answer().contains(kind.trim()), "{shown}: {} {}", done.answer(), done.log());
        assert_eq!(done.log().lines().count(), 1, "{shown}: {}", done.log());
    }
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_a_transient_failure() {
    let scene = Scene::new();
    // Bound and never listened to: nobody else can have the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://127.0.0.1:{}/", socket.local_addr().unwrap().port());
    let done = scene.run(&get(&url), &grant(&url, "")).await;
    assert!(done.answer().starts_with("Transient: "), "{}", done.answer());
    assert!(done.log().contains("no connection to 127.0.0.1:"), "{}", done.log());
}
