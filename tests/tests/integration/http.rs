//! `wasi:http` end to end: a compiled guest, its grants and credentials, and real servers on this
//! machine.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hookrun_capability::Services;
use hookrun_capability::http::Client;
use hookrun_capability::http::resolve::Resolve;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host};
use hookrun_tests::web::{REDIRECT, Scene, WebServer, get, grant};

/// A secret that must be found nowhere but at the server.
const SECRET: &str = "s3cret-7d1f0c5a";

/// A file with it.
fn secret(scene: &Scene) -> String {
    let path = scene.directory.path().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    path.display().to_string()
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
    let done =
        scene.run(&requests, &grant(&format!("{base}/v1/"), "methods = [\"GET\", \"POST\"]")).await;
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
    assert!(
        done.log().contains("no trusted TLS connection") && done.log().contains("`ca-file = "),
        "{}",
        done.log()
    );

    // The certificate is for `localhost` and 127.0.0.1 and not for this name, wherever it leads.
    let other = format!("https://other.example:{}/", server.port());
    let config = scene.config(&get(&other), &grant(&other, &trusted));
    let resolver = Arc::new(Knows("other.example", vec!["127.0.0.1".parse().unwrap()]));
    let services =
        Services::new(&config, &scene.dirs).with_http(Client::new(&config).resolving(resolver));
    let done = scene.run_with(&config, services).await;
    assert!(done.answer().contains("certificate is not trusted"), "{}", done.answer());
}

#[tokio::test]
async fn credentials_reach_the_server_and_nobody_else() {
    let scene = Scene::new();
    let secret = secret(&scene);
    let key = scene.directory.path().join("key");
    std::fs::write(&key, "AKIDEXAMPLE").unwrap();
    let key = key.display();
    for (table, header, expected) in [
        (
            format!("kind = \"bearer\"\ntoken-file = \"{secret}\""),
            "authorization",
            format!("Bearer {SECRET}"),
        ),
        (
            format!("kind = \"basic\"\nusername = \"me\"\npassword-file = \"{secret}\""),
            "authorization",
            "Basic bWU6czNjcmV0LTdkMWYwYzVh".to_owned(),
        ),
        (
            format!("kind = \"header\"\nheader = \"X-Api-Key\"\nvalue-file = \"{secret}\""),
            "x-api-key",
            SECRET.to_owned(),
        ),
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
        let rest = format!(
            "{}[http-credentials.c]\n{table}\n",
            grant(&base, "methods = [\"POST\"]\ncredential = \"c\"")
        );
        let request = |headers: &str| {
            format!(
                "{{ method = \"POST\", url = \"{base}\", body = \"text\", headers = [{headers}] }}"
            )
        };
        let own = format!("[\"{header}\", \"mine\"]");
        let done = scene.run(&format!("{}, {}", request(""), request(&own)), &rest).await;
        let answers = done.answers();
        assert_eq!(answers[0], "200: hello 4", "{table} {}", done.log());
        assert!(answers[1].starts_with("Denied: "), "{answers:?}");
        let log = done.log();
        assert!(
            log.contains(&format!("the plugin sets `{header}`, which [http-credentials.c] sets")),
            "{log}"
        );
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
    let secret = secret(&scene);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let table = format!("[http-credentials.c]\nkind = \"bearer\"\ntoken-file = \"{secret}\"\n");
    let config =
        scene.config(&get(&base), &format!("{}{table}", grant(&base, "credential = \"c\"")));
    let services = Services::new(&config, &scene.dirs);
    std::fs::remove_file(&secret).unwrap();
    assert_eq!(scene.run_with(&config, services).await.answer(), "200: hello 0");

    let services = Services::new(&config, &scene.dirs);
    let hookrun_config::KeyError { keys, message } =
        services.http().check("x", &config.plugins["x"].grant.http[0]).unwrap_err();
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
    let mut tables: Vec<String> =
        requests.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    tables.push(format!(
        "{{ method = \"DELETE\", url = \"http://127.0.0.1:{port}/v1/x?secret=1\" }}"
    ));
    let done = scene.run(&tables.join(", "), &grants).await;
    for answer in done.answers() {
        assert!(
            answer.starts_with("Denied: ")
                && answer.ends_with("the log of this run has the line to write"),
            "{answer}"
        );
    }
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(done.report.usage.denied["http.handle"], 8);
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
        let services =
            Services::new(&config, &scene.dirs).with_http(Client::new(&config).resolving(resolver));
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
        done.answer().starts_with("Denied: the address is not reached")
            || done.answer().contains("Denied: "),
        "{}",
        done.answer()
    );
    assert!(
        done.log()
            .contains("a loopback address, which is not reached; to allow it, write `address = ["),
        "{}",
        done.log()
    );
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let (scene, server) = (Scene::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    let done = scene
        .run(&format!("{}, {}", get(&format!("{base}/redirect")), get(REDIRECT)), &grant(&base, ""))
        .await;
    assert_eq!(done.answers()[0], format!("302 to {REDIRECT}: hello 0"));
    assert!(done.answers()[1].starts_with("Denied: "), "{:?}", done.answers());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn without_a_grant_the_plugin_does_not_load() {
    let scene = Scene::new();
    let config = scene.config("", "");
    let message = Host::new(&scene.dirs, Compiler::InProcess)
        .load(&config.plugins["x"], &config)
        .unwrap_err()
        .to_string();
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
        "{}[http-credentials.c]\nkind = \"bearer\"\ntoken-file = \"missing\"\n",
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
    assert_eq!(
        (requested[0].url.as_str(), requested[0].body.as_slice()),
        ("https://api.example.org/v1/x?q", &b"text"[..])
    );
}

#[test]
fn the_sandbox_allows_the_ports_of_all_grants() {
    let text = format!(
        "[plugins.a]\nsource = \"a.wasm\"\n{}[plugins.b]\nsource = \"b.wasm\"\n{}",
        grant("https://h/", "").replace("plugins.x", "plugins.a"),
        grant("http://h:8080/", "").replace("plugins.x", "plugins.b"),
    );
    let config = Config::parse(Path::new("/hookrun.toml"), &text).unwrap();
    assert_eq!(config.http_ports().into_iter().collect::<Vec<_>>(), [443, 8080]);
}
