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
use hookrun_tests::lab::{ConfigFile, PluginTable, toml};
use hookrun_tests::web::{REDIRECT, WebSandbox, WebServer, get, post, sends};
use toml::Table;

/// A secret that only the server may receive.
const SECRET: &str = "s3cret-7d1f0c5a";

/// Writes a file with the secret.
fn secret(sandbox: &WebSandbox) -> String {
    let path = sandbox.directory.path().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).unwrap();
    path.display().to_string()
}

/// A resolver that knows one name with these addresses.
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
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    let requests = [
        get(&format!("{base}/v1/a%20b")),
        post(&format!("{base}/v1/b?q=1#f"), toml! { headers = [["X-Own", "1"]] body = "text" }),
    ];
    let plugin =
        sends(requests).grant_http(&format!("{base}/v1/"), toml! { methods = ["GET", "POST"] });
    let done = sandbox.run(plugin).await;
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
async fn a_server_with_tls_needs_a_trusted_certificate_for_its_name() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::tls().await);
    let base = format!("https://localhost:{}/", server.port());
    let address = toml! { address = ["127.0.0.0/8", "::1"] };
    let mut trusted = address.clone();
    trusted.extend(toml! { ca-file = (server.authority().display().to_string()) });
    let done = sandbox.run(sends([get(&base)]).grant_http(&base, trusted.clone())).await;
    assert_eq!(done.answer(), "200: hello 0");

    let done = sandbox.run(sends([get(&base)]).grant_http(&base, address)).await;
    assert!(done.answer().starts_with("Permanent: "), "{}", done.answer());
    assert!(
        done.log().contains("no trusted TLS connection") && done.log().contains("`ca-file = "),
        "{}",
        done.log()
    );

    // The certificate is for `localhost` and 127.0.0.1, not for this name of the same address.
    let other = format!("https://other.example:{}/", server.port());
    let config = sandbox.config(sends([get(&other)]).grant_http(&other, trusted));
    let resolver = Arc::new(Knows("other.example", vec!["127.0.0.1".parse().unwrap()]));
    let services =
        Services::new(&config, &sandbox.dirs).with_http(Client::new(&config).resolving(resolver));
    let done = sandbox.run_with(&config, services).await;
    assert!(done.answer().contains("certificate is not trusted"), "{}", done.answer());
}

#[tokio::test]
async fn credentials_reach_only_the_server() {
    let sandbox = WebSandbox::new();
    let secret = secret(&sandbox);
    let key = sandbox.directory.path().join("key");
    std::fs::write(&key, "AKIDEXAMPLE").unwrap();
    let key = key.display().to_string();
    for (table, header, expected) in [
        (
            toml! { kind = "bearer" token-file = (secret.as_str()) },
            "authorization",
            format!("Bearer {SECRET}"),
        ),
        (
            toml! { kind = "basic" username = "me" password-file = (secret.as_str()) },
            "authorization",
            "Basic bWU6czNjcmV0LTdkMWYwYzVh".to_owned(),
        ),
        (
            toml! { kind = "header" header = "X-Api-Key" value-file = (secret.as_str()) },
            "x-api-key",
            SECRET.to_owned(),
        ),
        (
            toml! {
                kind = "aws-sigv4"
                access-key-file = (key.as_str())
                secret-key-file = (secret.as_str())
                region = "eu-west-1"
                service = "execute-api"
            },
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/".to_owned(),
        ),
    ] {
        let server = WebServer::plain().await;
        let base = format!("http://127.0.0.1:{}/", server.port());
        let requests = [
            post(&base, toml! { body = "text" }),
            post(&base, toml! { body = "text" headers = [[header, "mine"]] }),
        ];
        let plugin =
            sends(requests).grant_http(&base, toml! { methods = ["POST"] credential = "c" });
        let file = ConfigFile::from(plugin).http_credential("c", table.clone());
        let done = sandbox.run(file).await;
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
async fn a_secret_is_read_once_before_the_first_request() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let secret = secret(&sandbox);
    let base = format!("http://127.0.0.1:{}/", server.port());
    let plugin = sends([get(&base)]).grant_http(&base, toml! { credential = "c" });
    let credential = toml! { kind = "bearer" token-file = (secret.as_str()) };
    let config = sandbox.config(ConfigFile::from(plugin).http_credential("c", credential));
    let services = Services::new(&config, &sandbox.dirs);
    std::fs::remove_file(&secret).unwrap();
    assert_eq!(sandbox.run_with(&config, services).await.answer(), "200: hello 0");

    let services = Services::new(&config, &sandbox.dirs);
    let hookrun_config::KeyError { keys, message } =
        services.http().check("x", &config.plugins["x"].grant.http[0]).unwrap_err();
    assert_eq!(keys, ["http-credentials", "c", "token-file"]);
    assert!(message.contains("cannot be read"), "{message}");
    let done = sandbox.run_with(&config, services).await;
    assert!(
        done.answer().contains("the configuration of hookrun is incomplete"),
        "{}",
        done.answer()
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn requests_without_a_grant_are_refused_with_the_line_to_write() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let port = server.port();
    let requests = [
        "http://127.0.0.2:PORT/v1/x",
        "http://127.0.0.1:81/v1/x",
        "https://127.0.0.1:PORT/v1/x",
        "http://127.0.0.1:PORT/v10/x",
        "http://127.0.0.1:PORT/",
        "http://localhost:PORT/v1/x",
        "http://[::ffff:127.0.0.1]:PORT/v1/x",
    ];
    let mut tables: Vec<Table> =
        requests.iter().map(|url| get(&url.replace("PORT", &port.to_string()))).collect();
    let granted = format!("http://127.0.0.1:{port}/v1/");
    tables.push(toml! { method = "DELETE" url = (format!("{granted}x?secret=1")) });
    let plugin = sends(tables).grant_http(&granted, toml! { methods = ["GET"] });
    let done = sandbox.run(plugin).await;
    for answer in done.answers() {
        assert!(
            answer.starts_with("Denied: ")
                && answer.ends_with("the log of this run contains the line to write"),
            "{answer}"
        );
    }
    insta::assert_snapshot!(done.log().replace(&port.to_string(), "PORT"));
    assert_eq!(done.report.usage.denied["http.handle"], 8);
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn names_are_resolved_to_public_addresses_only() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let url = format!("http://cache.example:{}/", server.port());
    let mut logs = Vec::new();
    for (addresses, granted, reached) in [
        (&["127.0.0.1"][..], Table::new(), false),
        (&["::ffff:127.0.0.1"], Table::new(), false),
        (&["169.254.169.254"], toml! { address = ["169.254.0.0/16"] }, false),
        (&["10.0.0.1", "fd00::1"], Table::new(), false),
        (&[], Table::new(), false),
        (&["127.0.0.1"], toml! { address = ["127.0.0.1"] }, true),
        (&["::ffff:127.0.0.1"], toml! { address = ["127.0.0.0/8"] }, true),
        // An address that is not permitted is skipped.
        (&["10.0.0.1", "127.0.0.1"], toml! { address = ["127.0.0.1"] }, true),
    ] {
        let config = sandbox.config(sends([get(&url)]).grant_http(&url, granted));
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let resolver = Arc::new(Knows("cache.example", addresses));
        let services = Services::new(&config, &sandbox.dirs)
            .with_http(Client::new(&config).resolving(resolver));
        let done = sandbox.run_with(&config, services).await;
        assert_eq!(done.answer() == "200: hello 0", reached, "{} {}", done.answer(), done.log());
        logs.push(done.log().replace(&server.port().to_string(), "PORT"));
    }
    insta::assert_snapshot!(logs.join("\n"));
    assert_eq!(server.seen().len(), 3);
}

/// Uses the resolver of the system.
#[tokio::test]
async fn localhost_is_refused_as_a_loopback_address() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let url = format!("http://localhost:{}/", server.port());
    let done = sandbox.run(sends([get(&url)]).grant_http(&url, Table::new())).await;
    assert!(done.answer().starts_with("Denied: "), "{}", done.answer());
    assert!(
        done.log()
            .contains("a loopback address, which is not reached; to allow it, write `address = ["),
        "{}",
        done.log()
    );
    assert_eq!(server.seen(), []);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (sandbox, server) = (WebSandbox::new(), WebServer::plain().await);
    let base = format!("http://127.0.0.1:{}", server.port());
    let requests = [get(&format!("{base}/redirect")), get(REDIRECT)];
    let done = sandbox.run(sends(requests).grant_http(&base, Table::new())).await;
    assert_eq!(done.answers()[0], format!("302 to {REDIRECT}: hello 0"));
    assert!(done.answers()[1].starts_with("Denied: "), "{:?}", done.answers());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn without_a_grant_the_plugin_does_not_load() {
    let sandbox = WebSandbox::new();
    let config = sandbox.config(sends(Vec::new()));
    let message = Host::new(&sandbox.dirs, Compiler::InProcess)
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

/// `hookrun test` uses these services.
#[tokio::test]
async fn services_in_memory_send_no_request() {
    let sandbox = WebSandbox::new();
    let requests = [
        post("https://api.example.org/v1/x?q", toml! { body = "text" }),
        get("https://other.example/"),
    ];
    let granted = toml! { methods = ["POST"] credential = "c" };
    let plugin = sends(requests).grant_http("https://api.example.org/v1/", granted);
    let credential = toml! { kind = "bearer" token-file = "missing" };
    let config = sandbox.config(ConfigFile::from(plugin).http_credential("c", credential));
    let services = Services::in_memory(&config, &sandbox.dirs);
    let done = sandbox.run_with(&config, services.clone()).await;
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
    let granted = |file: &str, url: &str| PluginTable::file(file).grant_http(url, Table::new());
    let file = ConfigFile::new()
        .plugin("a", granted("a.wasm", "https://h/"))
        .plugin("b", granted("b.wasm", "http://h:8080/"));
    let config = Config::parse(Path::new("/hookrun.toml"), &file.to_string()).unwrap();
    assert_eq!(config.http_ports().into_iter().collect::<Vec<_>>(), [443, 8080]);
}
