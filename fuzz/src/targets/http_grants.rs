//! HTTP grants, and the requests that they are to cover: URLs of the configuration, and scheme,
//! authority and path as a guest gives them.
//!
//! Six lines: the URL of the grant, then the request's scheme, authority, path and method, then an
//! address that its name leads to.

use std::net::IpAddr;

use hookrun_capability::http::address;
use hookrun_config::http::{self, HttpGrant, HttpTarget, HttpUrl};

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (url, scheme, authority, path, method, ip) =
        (line(), line(), line(), line(), line(), line());
    let granted = match HttpUrl::parse(url) {
        Ok(url) => {
            assert_eq!(
                HttpUrl::parse(&url.to_string()),
                Ok(url.clone()),
                "what is written is read as the same"
            );
            Some(url)
        }
        Err(flaw) => {
            assert!(!flaw.to_string().is_empty());
            None
        }
    };
    let Ok(asked) = HttpUrl::of(scheme, authority, path) else { return };
    // What is checked is what is sent.
    let sent = HttpUrl::of(asked.scheme.as_str(), &asked.authority(), asked.path.as_str());
    assert_eq!(sent.as_ref(), Ok(&asked));
    assert!(!asked.authority().contains(['@', '/', ' ', '\r', '\n', '\\']), "{asked:?}");
    assert!(!asked.path.as_str().contains([' ', '\r', '\n', '\0']), "{asked:?}");
    let Some(granted) = granted else { return };
    let grant = HttpGrant {
        url: Some(granted.clone()),
        methods: vec!["GET".to_owned()],
        address: Vec::new(),
        ca_file: None,
        credential: None,
    };
    let target = HttpTarget { method: method.to_owned(), url: asked.clone() };
    match http::granting(std::slice::from_ref(&grant), &target) {
        Ok(_) => {
            assert_eq!(
                (asked.scheme, &asked.host, asked.port),
                (granted.scheme, &granted.host, granted.port)
            );
            assert!(method == "GET" && granted.covers(&asked), "{target:?}");
            assert!(!asked.path.as_str().split('/').any(|part| part == ".."), "{asked:?}");
        }
        Err(miss) => assert!(!miss.message("x", std::path::Path::new("hookrun.toml")).is_empty()),
    }
    let Ok(ip) = ip.parse::<IpAddr>() else { return };
    if address::permitted(ip, &asked.host, &grant).is_ok()
        && asked.host.to_string().parse::<IpAddr>().is_err()
    {
        let plain = ip.to_canonical();
        let private = match plain {
            IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
        };
        assert!(
            !private && !plain.is_loopback() && !plain.is_unspecified() && !plain.is_multicast(),
            "{ip}"
        );
    }
}
