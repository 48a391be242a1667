use super::*;

fn target(method: &str, url: &str) -> HttpTarget {
    HttpTarget { method: method.to_owned(), url: HttpUrl::parse(url).unwrap() }
}

fn grants(text: &str) -> Vec<HttpGrant> {
    #[derive(Deserialize)]
    struct Holder {
        http: Vec<HttpGrant>,
    }
    toml::from_str::<Holder>(text).unwrap().http
}

#[test]
fn a_grant_covers_its_place_and_methods() {
    let grants = grants(
        "http = [\n{ url = \"https://api.example.org/v1/\", methods = [\"GET\", \"POST\"] },\n{ url = \"http://h:8080\" }\n]",
    );
    for (method, url, expected) in [
        ("GET", "https://api.example.org/v1/x", true),
        ("POST", "https://API.example.org:443/v1/x/y", true),
        ("DELETE", "https://api.example.org/v1/x", false),
        ("GET", "https://api.example.org/v1", false),
        ("GET", "https://api.example.org/v10/x", false),
        ("GET", "https://api.example.org/", false),
        ("GET", "http://api.example.org/v1/x", false),
        ("GET", "https://api.example.org:8443/v1/x", false),
        ("GET", "https://api.example.org.evil.example/v1/x", false),
        ("GET", "https://xapi.example.org/v1/x", false),
        ("GET", "http://h:8080/anything", true),
        ("HEAD", "http://h:8080/", true),
        ("get", "http://h:8080/", false),
        ("GET", "http://h/", false),
    ] {
        assert_eq!(granting(&grants, &target(method, url)).is_ok(), expected, "{method} {url}");
    }
    assert_eq!(ports(&grants).into_iter().collect::<Vec<_>>(), [443, 8080]);
}

#[test]
fn the_grant_with_the_longest_path_applies() {
    let grants = grants(
        "http = [{ url = \"https://h/\", credential = \"a\" }, { url = \"https://h/x/\", credential = \"b\" }, { url = \"https://h/x\", credential = \"c\" }]",
    );
    let credential =
        |url: &str| granting(&grants, &target("GET", url)).unwrap().credential.clone().unwrap();
    assert_eq!(credential("https://h/y"), "a");
    assert_eq!(credential("https://h/x/y"), "b", "the first of several equal ones");
    assert_eq!(credential("https://h/x"), "c");
}

#[test]
fn refusals_end_in_the_lines_to_write() {
    let grants = grants("http = [{ url = \"https://api.example.org/v1/\", methods = [\"GET\"] }]");
    let file = std::path::Path::new("/etc/hookrun/hookrun.toml");
    let refused = |method: &str, url: &str| {
        granting(&grants, &target(method, url)).unwrap_err().message("notify", file)
    };
    insta::assert_snapshot!(refused("GET", "https://api.example.org/v2/things"));
    insta::assert_snapshot!(refused("POST", "http://[::1]:8080/x"));
    insta::assert_snapshot!(refused("POST", "https://api.example.org/v1/things"));
    insta::assert_snapshot!(refused("CONNECT", "https://api.example.org/v1/"));
}

#[test]
fn invalid_grants_are_refused() {
    let error = |line: &str| {
        let text = format!(
            "[plugins.a]\nsource = \"a.wasm\"\n[[plugins.a.grant.http]]\n{line}\n[http-credentials.github]\nkind = \"bearer\"\n\
             token-file = \"/t\"\n"
        );
        crate::Config::parse(std::path::Path::new("hookrun.toml"), &text)
            .expect_err(line)
            .to_string()
    };
    let errors: Vec<String> = [
        "methods = [\"GET\"]",
        "url = \"api.example.org\"",
        "url = \"ftp://h/\"",
        "url = \"https://me:secret@h/\"",
        "url = \"https://h/?q\"",
        "url = \"https://2130706433/\"",
        "url = \"https://bücher.example/\"",
        "url = \"https://h/a/../b\"",
        "url = \"https://h/\"\nmethod = [\"GET\"]",
        "url = \"https://h/\"\nmethods = []",
        "url = \"https://h/\"\nmethods = [\"get\"]",
        "url = \"https://h/\"\nmethods = [\"CONNECT\"]",
        "url = \"https://h/\"\naddress = [\"10.0.0.0/33\"]",
        "url = \"https://h/\"\naddress = [\"10.0.0.1/8\"]",
        "url = \"http://h/\"\nca-file = \"/ca\"",
        "url = \"http://h/\"\ncredential = \"github\"",
        "url = \"https://h/\"\ncredential = \"githbu\"",
    ]
    .iter()
    .map(|line| error(line))
    .collect();
    assert!(!errors.join("\n").contains("secret"), "{errors:#?}");
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn invalid_credentials_are_refused() {
    let error = |lines: &str| {
        let text = format!("[http-credentials.c]\n{lines}\n");
        crate::Config::parse(std::path::Path::new("hookrun.toml"), &text)
            .expect_err(lines)
            .to_string()
    };
    let errors: Vec<String> = [
        "token-file = \"/t\"",
        "kind = \"baerer\"",
        "kind = \"bearer\"",
        "kind = \"bearer\"\ntoken = \"abc\"",
        "kind = \"bearer\"\ntoken-file = \"/t\"\nusername = \"me\"",
        "kind = \"basic\"\nusername = \"a:b\"\npassword-file = \"/p\"",
        "kind = \"header\"\nheader = \"Content-Length\"\nvalue-file = \"/v\"",
        "kind = \"header\"\nheader = \"x y\"\nvalue-file = \"/v\"",
        "kind = \"aws-sigv4\"\naccess-key-file = \"/a\"\nsecret-key-file = \"/s\"\nregion = \"eu-west-1\"",
    ]
    .iter()
    .map(|lines| error(lines))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}
