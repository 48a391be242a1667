//! Guests that send requests without a grant for them. hookrun refuses all of them before it sends
//! anything. Granted requests to real servers are in `tests/tests/integration/http.rs`.

use toml::{Table, toml};

use super::{Row, act, with};

pub(super) fn rows() -> Vec<Row> {
    let http = |name: &str, more: Table| {
        act(name, with(toml! { act = "http" }, more)).ends("permanent", "")
    };
    let ungranted = |name: &str, url: &str| {
        act(name, toml! { act = "http" url = url }).ends("permanent", "has no grant for http")
    };
    vec![
        ungranted("http-ungranted-host", "http://mallory.example.net/v1/"),
        ungranted("http-ungranted-port", "http://granted.example.org:8080/v1/"),
        ungranted("http-ungranted-scheme", "https://granted.example.org/v1/"),
        ungranted("http-ungranted-path", "http://granted.example.org/v2/"),
        ungranted("http-mapped-address", "http://[::ffff:127.0.0.1]/"),
        ungranted("http-metadata-service", "http://169.254.169.254/latest/meta-data/"),
        http("http-path-with-dots", toml! { url = "http://granted.example.org/v1/../v2/" }),
        http(
            "http-path-with-encoded-dots",
            toml! { url = "http://granted.example.org/v1/%2e%2e/v2/" },
        ),
        http("http-decimal-address", toml! { url = "http://2130706433:9/" }),
        http("http-hexadecimal-address", toml! { url = "http://0x7f.0.0.1:9/" }),
        http("http-user-information", toml! { url = "http://granted.example.org@127.0.0.1/v1/" }),
        http("http-name-of-loopback", toml! { url = "http://localhost:9/" }),
        http(
            "http-ungranted-method",
            toml! { method = "DELETE" url = "http://granted.example.org/v1/" },
        ),
        http("http-connect", toml! { method = "CONNECT" url = "http://granted.example.org/v1/" }),
        http(
            "http-method-smuggling",
            toml! { method = "GET / HTTP/1.1\r\nX:" url = "http://granted.example.org/v1/" },
        ),
        http(
            "http-header-smuggling",
            toml! { url = "http://granted.example.org/v1/" header = ["X-A", "b\r\nHost: mallory"] },
        ),
        http(
            "http-header-host",
            toml! {
                url = "http://granted.example.org/v1/"
                header = ["Host", "mallory.example.net"]
            },
        ),
        http(
            "http-header-length",
            toml! {
                url = "http://granted.example.org/v1/"
                header = ["Transfer-Encoding", "chunked"]
            },
        ),
    ]
}
