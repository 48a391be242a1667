//! `wasi:http` end to end: a compiled guest, its grants, and real servers on this machine.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "what goes wrong has to fail the test")]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hookrun::capability::Services;
use hookrun::capability::http::Client;
use hookrun::capability::http::resolve::Resolve;
use hookrun::config::Config;
use hookrun::dirs::Dirs;
use hookrun::event::{Event, HookEvent, Output, PostBuild};
use hookrun::outcome::{Outcome, RunReport};
use hookrun::plugin::Host;
use hookrun_tests::guests::guest;
use hookrun_tests::web::{REDIRECT, WebServer, raw, raw_then_silence};

/// A secret that must be found nowhere but at the server.
const SECRET: &str = "s3cret-7d1f0c5a";

struct Scene {
    directory: tempfile::TempDir,
    dirs: Dirs,
}

/// What became of the requests.
struct Done {
    report: RunReport,
    file: String,
}

impl Done {
    /// The answers the guest had.
    fn answers(&self) -> Vec<String> {
        match &self.report.outcome {
            Outcome::Done { details, .. } => details.iter().map(|(_, value)| self.shown(value)).collect(),
            other => panic!("the run did not end well: {other:?} {:?}", self.report.log),
        }
    }

    fn answer(&self) -> String {
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers[0].clone()
    }

    fn log(&self) -> String {
        let lines: Vec<String> = self.report.log.iter().map(|line| self.shown(&line.message)).collect();
        lines.join("\n")
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.file, "FILE")
    }

    /// Everything that anybody can read of this run.
    fn everything(&self) -> String {
        format!("{:?}", self.report)
    }
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        Self { directory, dirs }
    }

    fn secret(&self) -> String {
        let path = self.directory.path().join("secret");
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        path.display().to_string()
    }

    /// A configuration whose plugin `x` sends `requests` (a TOML list); `rest` has its grants and whatever else.
    fn config(&self, requests: &str, rest: &str) -> Config {
        let source = guest("web").unwrap();
        let text =
            format!("[plugins.x]\nsource = \"{}\"\n[plugins.x.config]\nrequests = [{requests}]\n{rest}\n", source.display());
        Config::parse(&self.dirs.config, &text).unwrap()
    }

    async fn run(&self, requests: &str, rest: &str) -> Done {
        let config = self.config(requests, rest);
        let services = Services::new(&config, &self.dirs);
        self.run_with(&config, services).await
    }

    async fn run_with(&self, config: &Config, services: Services) -> Done {
        let plugin = Host::new(&self.dirs).load(&config.plugins["x"], config).unwrap();
        let report = plugin.run_event(&services, &built(), 1).await;
        Done { report, file: self.dirs.config.display().to_string() }
    }
}

fn built() -> Event {
    let outputs = vec![Output { name: "out".to_owned(), path: "/nix/store/10bgd045z0d4icpbc2yyz4gx48ak44la-x".to_owned() }];
    let drv_path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x.drv".to_owned();
    Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs }))
}

/// A grant; `rest` are more lines of its table.
fn grant(url: &str, rest: &str) -> String {
    format!("[[plugins.x.grant.http]]\nurl = \"{url}\"\n{rest}\n")
}

fn get(url: &str) -> String {
    format!("{{ url = \"{url}\" }}")
}

/// A resolver that knows one name, and whose answers are the ones given.
#[derive(Debug)]
struct Knows(&'static str, Vec<IpAddr>);

impl Resolve for Knows {
    fn addresses<'a>(
        &'a self,
        name: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send + 'a>> {
        assert_eq!(name, self.0);
        Box::pin(std::future::ready(Ok(self.1.clone())))
    }
}

#[tokio::test]
async fn a_granted_request_arrives() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    let requests = format!(
        "{}, {{ method = \"POST\", url = \"{base}/v1/b?q=1#f\", headers = [[\"X-Own\", \"1\"]], body = \"text\" }}",
        get(&format!("{base}/v1/a%20b"))
    );
    let done = scene.run(&requests, &grant(&format!("{base}/v1/"), "methods = [\"GET\", \"POST\"]")).await;
    assert_eq!(done.answers(), ["200: hello 0", "200: hello 4"]);
    assert_eq!(done.log(), "");
    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("GET", "/v1/a%20b"));
    assert_eq!((seen[1].method.as_str(), seen[1].target.as_str()), ("POST", "/v1/b?q=1"));
    assert_eq!(seen[1].body, b"text");
    assert_eq!(seen[1].header("x-own"), ["1"]);
    assert_eq!(seen[1].header("content-length"), ["4"]);
    assert_eq!(seen[1].header("host"), [format!("127.0.0.1:{}", server.port())]);
    assert_eq!(seen[1].header("user-agent"), [format!("hookrun/{}", env!("CARGO_PKG_VERSION"))]);
    assert_eq!(done.report.usage.calls["http.handle"], 2);
}

#[tokio::test]
async fn tls_by_name_with_an_own_authority() {
    let (scene, server) = (Scene::new(), WebServer::tls().await);
    let base = format!("https://localhost:{}/", server.port());
    let address = "address = [\"127.0.0.0/8\", \"::1\"]";
    let trusted = format!("{address}\nca-file = \"{}\"", server.authority().display());
    let done = scene.run(&get(&base), &grant(&base, &trusted)).await;
    assert_eq!(done.answer(), "200: hello 0");

    let done = scene.run(&get(&base), &grant(&base, address)).await;
    assert!(done.answer().starts_with("Permanent: "), "{}", done.answer());
    assert!(done.log().contains("no trusted TLS connection") && done.log().contains("`ca-file = "), "{}", done.log());

    // The certificate is for `localhost` and 127.0.0.1 and not for this name, wherever it leads.
    let other = format!("https://other.example:{}/", server.port());
    let config = scene.config(&get(&other), &grant(&other, &trusted));
    let resolver = Arc::new(Knows("other.example", vec!["127.0.0.1".parse().unwrap()]));
    let services = Services::new(&config, &scene.dirs).with_http(Client::new(&config).resolving(resolver));
    let done = scene.run_with(&config, services).await;
    assert!(done.answer().contains("certificate is not trusted"), "{}", done.answer());
}

#[tokio::test]
async fn credentials_reach_the_server_and_nobody_else() {
    let scene = Scene::new();
    let secret = scene.secret();
    let key = scene.directory.path().join("key");
    std::fs::write(&key, "AKIDEXAMPLE").unwrap();
    let key = key.display();
    for (table, header, expected) in [
        (format!("kind = \"bearer\"\ntoken-file = \"{secret}\""), "authorization", format!("Bearer {SECRET}")),
        (
            format!("kind = \"basic\"\nusername = \"me\"\npassword-file = \"{secret}\""),
            "authorization",
            "Basic bWU6czNjcmV0LTdkMWYwYzVh".to_owned(),
        ),
        (format!("kind = \"header\"\nheader = \"X-Api-Key\"\nvalue-file = \"{secret}\""), "x-api-key", SECRET.to_owned()),
        (
            format!(
                "kind = \"aws-sigv4\"\naccess-key-file = \"{key}\"\nsecret-key-file = \"{secret}\"\nregion = \"eu-west-1\"\nservice = \"execute-api\""
            ),
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/".to_owned(),
        ),
    ] {
        let server = WebServer::plain().await;
        let base = format!("http://127.0.0.1:{}/", server.port());
        let rest = format!("{}[http-credentials.c]\n{table}\n", grant(&base, "methods = [\"POST\"]\ncredential = \"c\""));
        let request =
            |headers: &str| format!("{{ method = \"POST\", url = \"{base}\", body = \"text\", headers = [{headers}] }}");
        let own = format!("[\"{header}\", \"mine\"]");
        let done = scene.run(&format!("{}, {}", request(""), request(&own)), &rest).await;
        let answers = done.answers();
        assert_eq!(answers[0], "200: hello 4", "{table} {}", done.log());
        assert!(answers[1].starts_with("Denied: "), "{answers:?}");
        let log = done.log();
        assert!(log.contains(&format!("the plugin sets `{header}`, which [http-credentials.c] sets")), "{log}");
        let seen = server.seen();
        assert_eq!(seen.len(), 1, "the second was not sent");
        assert_eq!(seen[0].header(header).len(), 1);
        assert!(seen[0].header(header)[0].starts_with(&expected), "{:?}", seen[0].header(header));
        assert!(!done.everything().contains(SECRET), "{}", done.everything());
    }
}

#[tokio::test]
async fn a_secret_is_read_once_and_early() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let secret = scene.secret();
    let base = format!("http://127.0.0.1:{}/", server.port());
    let table = format!("[http-credentials.c]\nkind = \"bearer\"\ntoken-file = \"{secret}\"\n");
    let config = scene.config(&get(&base), &format!("{}{table}", grant(&base, "credential = \"c\"")));
    let services = Services::new(&config, &scene.dirs);
    std::fs::remove_file(&secret).unwrap();
    assert_eq!(scene.run_with(&config, services).await.answer(), "200: hello 0");

    let services = Services::new(&config, &scene.dirs);
    let (keys, message) = services.http().check("x", &config.plugins["x"].grant.http[0]).unwrap_err();
    assert_eq!(keys, ["http-credentials", "c", "token-file"]);
    assert!(message.contains("cannot be read"), "{message}");
    let done = scene.run_with(&config, services).await;
    assert!(done.answer().contains("the host's configuration is incomplete"), "{}", done.answer());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn what_is_not_granted_is_refused_with_the_lines() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let port = server.port();
    let grants = grant(&format!("http://127.0.0.1:{port}/v1/"), "methods = [\"GET\"]");
    let requests = [
        "http://127.0.0.2:PORT/v1/x",
        "http://127.0.0.1:81/v1/x",
        "https://127.0.0.1:PORT/v1/x",
        "http://127.0.0.1:PORT/v10/x",
        "http://127.0.0.1:PORT/",
        "http://localhost:PORT/v1/x",
        "http://[::ffff:127.0.0.1]:PORT/v1/x",
    ];
    let mut tables: Vec<String> = requests.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    tables.push(format!("{{ method = \"DELETE\", url = \"http://127.0.0.1:{port}/v1/x?secret=1\" }}"));
    let done = scene.run(&tables.join(", "), &grants).await;
    for answer in done.answers() {
        assert!(answer.starts_with("Denied: ") && answer.ends_with("the log of this run has the line to write"), "{answer}");
    }
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(done.report.usage.denied["http.handle"], 8);
    assert_eq!(server.seen(), []);
}

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
    let tables: Vec<String> = urls.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    let done = scene.run(&tables.join(", "), &grant(&format!("http://127.0.0.1:{port}/v1/"), "")).await;
    for (url, answer) in urls.iter().zip(done.answers()) {
        assert!(answer.starts_with("Invalid: "), "{url}: {answer}");
    }
    assert!(!done.everything().contains("secret"), "{}", done.log());
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn names_lead_to_public_addresses_only() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let url = format!("http://cache.example:{}/", server.port());
    let mut logs = Vec::new();
    for (addresses, rest, reached) in [
        (&["127.0.0.1"][..], "", false),
        (&["::ffff:127.0.0.1"], "", false),
        (&["169.254.169.254"], "address = [\"169.254.0.0/16\"]", false),
        (&["10.0.0.1", "fd00::1"], "", false),
        (&[], "", false),
        (&["127.0.0.1"], "address = [\"127.0.0.1\"]", true),
        (&["::ffff:127.0.0.1"], "address = [\"127.0.0.0/8\"]", true),
        // What is not permitted is passed over, not tried.
        (&["10.0.0.1", "127.0.0.1"], "address = [\"127.0.0.1\"]", true),
    ] {
        let config = scene.config(&get(&url), &grant(&url, rest));
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let resolver = Arc::new(Knows("cache.example", addresses));
        let services = Services::new(&config, &scene.dirs).with_http(Client::new(&config).resolving(resolver));
        let done = scene.run_with(&config, services).await;
        assert_eq!(done.answer() == "200: hello 0", reached, "{} {}", done.answer(), done.log());
        logs.push(done.log().replace(&server.port().to_string(), "PORT"));
    }
    insta::assert_snapshot!(logs.join("\n"));
    assert_eq!(server.seen().len(), 3);
}

/// The system's resolver, as people have it.
#[tokio::test]
async fn localhost_is_this_machine() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let url = format!("http://localhost:{}/", server.port());
    let done = scene.run(&get(&url), &grant(&url, "")).await;
    assert!(
        done.answer().starts_with("Denied: the address is not reached") || done.answer().contains("Denied: "),
        "{}",
        done.answer()
    );
    assert!(
        done.log().contains("a loopback address, which is not reached; to allow it, write `address = ["),
        "{}",
        done.log()
    );
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    let done = scene.run(&format!("{}, {}", get(&format!("{base}/redirect")), get(REDIRECT)), &grant(&base, "")).await;
    assert_eq!(done.answers()[0], format!("302 to {REDIRECT}: hello 0"));
    assert!(done.answers()[1].starts_with("Denied: "), "{:?}", done.answers());
    assert_eq!(server.seen().len(), 1);
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
        (get(&format!("{base}/bytes/70000")), "http-response-bytes = \"64KiB\"", "http-response-bytes"),
        (post("fillers = 20"), "http-header-bytes = \"16KiB\"", "http-header-bytes"),
        (get(&format!("{base}/header/20000")), "http-header-bytes = \"16KiB\"", "http-header-bytes"),
        (get(&format!("{base}/never")), "http-first-byte-time = \"100ms\"", "http-first-byte-time"),
        (get(&format!("{mute}/")), "http-connect-time = \"100ms\"", "http-connect-time"),
        (get(&format!("{half}/")), "http-between-bytes-time = \"100ms\"", "http-between-bytes-time"),
    ] {
        let grants = format!("{}{}{}", grant(&base, "methods = [\"GET\", \"POST\"]"), grant(&mute, ""), grant(&half, ""));
        let done = scene.run(&request, &format!("[plugins.x.limits]\n{limits}\n{grants}")).await;
        let kind = if key.ends_with("time") { "Transient: " } else { "Limit: " };
        assert!(done.answer().starts_with(kind), "{key}: {} {}", done.answer(), done.log());
        let log = done.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(&format!("plugin `x` reached its limit `{key}` (")), "{log}");
        assert!(log.contains(&format!("write `{key} = ")) && log.ends_with("under [plugins.x.limits]"), "{log}");
    }
    // As much as is allowed passes.
    let rest = grant(&base, "methods = [\"GET\", \"POST\"]");
    let done =
        scene.run(&format!("{}, {}", post("body-bytes = 8388608"), get(&format!("{base}/bytes/4194304"))), &rest).await;
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
        log.contains("plugin `x` reached its limit `http-connections` (3)") && log.contains("write `http-connections = 6`"),
        "{log}"
    );
}

/// A header table far beyond its limit ends the run: the interface has no code for it.
#[tokio::test]
async fn a_flood_of_headers_ends_the_run() {
    let scene = Scene::new();
    let rest = format!("[plugins.x.limits]\nhttp-header-bytes = \"4KiB\"\n{}", grant("http://127.0.0.1:9/", ""));
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
    assert_eq!(done.report.outcome.class(), "limit", "{:?}", done.report);
}

#[tokio::test]
async fn headers_cannot_smuggle() {
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
        .map(|(headers, _)| format!("{{ method = \"POST\", url = \"{base}\", body = \"text\", headers = [{headers}] }}"))
        .collect();
    let done = scene.run(&requests.join(", "), &grant(&base, "methods = [\"POST\"]")).await;
    for ((header, expected), answer) in headers.iter().zip(done.answers()) {
        assert!(!answer.starts_with("200") && answer.contains(expected), "{header}: {answer}");
    }
    assert!(server.seen().iter().all(|seen| seen.body.len() < 4), "no body is longer than its length: {:?}", server.seen());
}

#[tokio::test]
async fn malformed_answers_are_errors() {
    let scene = Scene::new();
    for (answer, kind) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello"[..], "Permanent: "),
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
async fn nobody_there() {
    let scene = Scene::new();
    // Bound and never listened to: nobody else can have the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://127.0.0.1:{}/", socket.local_addr().unwrap().port());
    let done = scene.run(&get(&url), &grant(&url, "")).await;
    assert!(done.answer().starts_with("Transient: "), "{}", done.answer());
    assert!(done.log().contains("no connection to 127.0.0.1:"), "{}", done.log());
}

#[tokio::test]
async fn without_a_grant_the_plugin_does_not_load() {
    let scene = Scene::new();
    let config = scene.config("", "");
    let message = Host::new(&scene.dirs).load(&config.plugins["x"], &config).unwrap_err().to_string();
    assert!(
        message.contains(
            "it wants `http` and has no grant for that; write `http = [{ url = \"https://HOST/\" }]` under [plugins.x.grant]"
        ),
        "{message}"
    );
}

/// `hookrun test`: the same grants, and nothing is sent.
#[tokio::test]
async fn a_test_sends_nothing() {
    let scene = Scene::new();
    let rest = format!(
        "{}[http-credentials.c]\nkind = \"bearer\"\ntoken-file = \"/nowhere\"\n",
        grant("https://api.example.org/v1/", "methods = [\"POST\"]\ncredential = \"c\"")
    );
    let config = scene.config(
        "{ method = \"POST\", url = \"https://api.example.org/v1/x?q\", body = \"text\" }, { url = \"https://other.example/\" }",
        &rest,
    );
    let services = Services::in_memory(&config, &scene.dirs);
    let done = scene.run_with(&config, services.clone()).await;
    assert_eq!(done.answers()[0], "200: {}");
    assert!(done.answers()[1].contains("Denied: "), "{:?}", done.answers());
    let requested = services.http().requested();
    assert_eq!(requested.len(), 1);
    assert_eq!((requested[0].url.as_str(), requested[0].body.as_slice()), ("https://api.example.org/v1/x?q", &b"text"[..]));
}

#[test]
fn the_ports_of_all_grants() {
    let text = format!(
        "[plugins.a]\nsource = \"a.wasm\"\n{}[plugins.b]\nsource = \"b.wasm\"\n{}",
        grant("https://h/", "").replace("plugins.x", "plugins.a"),
        grant("http://h:8080/", "").replace("plugins.x", "plugins.b"),
    );
    let config = Config::parse(Path::new("/hookrun.toml"), &text).unwrap();
    assert_eq!(config.http_ports().into_iter().collect::<Vec<_>>(), [443, 8080]);
}
