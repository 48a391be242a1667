//! Guests that send requests to where they may not. All are refused before anything is sent; what
//! goes to a server that is granted is in `tests/tests/integration/http.rs`, with real servers.

use super::{Row, act};

pub(super) fn rows() -> Vec<Row> {
    let http = |name: &str, more: &str| {
        act(name, &format!("act = \"http\", {more}")).ends("permanent", "")
    };
    let ungranted = |name: &str, url: &str| {
        act(name, &format!("act = \"http\", url = \"{url}\""))
            .ends("permanent", "has no grant for http")
    };
    vec![
        ungranted("http-ungranted-host", "http://mallory.example.net/v1/"),
        ungranted("http-ungranted-port", "http://granted.example.org:8080/v1/"),
        ungranted("http-ungranted-scheme", "https://granted.example.org/v1/"),
        ungranted("http-ungranted-path", "http://granted.example.org/v2/"),
        ungranted("http-mapped-address", "http://[::ffff:127.0.0.1]/"),
        ungranted("http-metadata-service", "http://169.254.169.254/latest/meta-data/"),
        http("http-path-with-dots", r#"url = "http://granted.example.org/v1/../v2/""#),
        http("http-path-with-encoded-dots", r#"url = "http://granted.example.org/v1/%2e%2e/v2/""#),
        http("http-decimal-address", r#"url = "http://2130706433:9/""#),
        http("http-hexadecimal-address", r#"url = "http://0x7f.0.0.1:9/""#),
        http("http-user-information", r#"url = "http://granted.example.org@127.0.0.1/v1/""#),
        http("http-name-of-loopback", r#"url = "http://localhost:9/""#),
        http(
            "http-ungranted-method",
            r#"method = "DELETE", url = "http://granted.example.org/v1/""#,
        ),
        http("http-connect", r#"method = "CONNECT", url = "http://granted.example.org/v1/""#),
        http(
            "http-method-smuggling",
            r#"method = "GET / HTTP/1.1\r\nX:", url = "http://granted.example.org/v1/""#,
        ),
        http(
            "http-header-smuggling",
            r#"url = "http://granted.example.org/v1/", header = ["X-A", "b\r\nHost: mallory"]"#,
        ),
        http(
            "http-header-host",
            r#"url = "http://granted.example.org/v1/", header = ["Host", "mallory.example.net"]"#,
        ),
        http(
            "http-header-length",
            r#"url = "http://granted.example.org/v1/", header = ["Transfer-Encoding", "chunked"]"#,
        ),
    ]
}
