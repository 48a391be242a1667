use proptest::prelude::*;

use super::*;

#[test]
fn urls_are_parsed_into_places() {
    for (url, expected) in [
        ("https://api.example.org", "https://api.example.org/"),
        ("HTTPS://API.Example.ORG:443/v1", "https://api.example.org/v1"),
        ("http://h:8080/a%20b/", "http://h:8080/a%20b/"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("http://[::1]:80/", "http://[::1]/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://h/a;v=1/b", "https://h/a;v=1/b"),
        ("https://h/100%25", "https://h/100%25"),
        ("https://h/...", "https://h/..."),
    ] {
        assert_eq!(
            HttpUrl::parse(url).map(|parsed| parsed.to_string()),
            Ok(expected.to_owned()),
            "{url}"
        );
    }
}

#[test]
fn invalid_hosts_are_refused_or_normalised() {
    for (host, flaw) in [
        ("", Flaw::NoHost),
        ("h.", Flaw::TrailingDot),
        ("a..b", Flaw::Host),
        ("-a", Flaw::Host),
        ("a b", Flaw::Host),
        ("a\u{200b}b", Flaw::NotAscii),
        ("ｅxample.org", Flaw::NotAscii),
        ("127.1", Flaw::OddAddress),
        ("2130706433", Flaw::OddAddress),
        ("0x7f000001", Flaw::OddAddress),
        ("0x7f.0.0.1", Flaw::OddAddress),
        ("0177.0.0.1", Flaw::OddAddress),
        ("127.0.0.01", Flaw::OddAddress),
        ("1.2.3.4.5", Flaw::OddAddress),
        ("256.0.0.1", Flaw::OddAddress),
        ("127.0.0.0x1", Flaw::OddAddress),
        ("[::1", Flaw::Host),
        ("[fe80::1%25eth0]", Flaw::Host),
        ("[127.0.0.1]", Flaw::Host),
        ("user@h", Flaw::UserInformation),
        ("h@127.0.0.1", Flaw::UserInformation),
        ("h:", Flaw::Port),
        ("h:0", Flaw::Port),
        ("h:080", Flaw::Port),
        ("h:+80", Flaw::Port),
        ("h:65536", Flaw::Port),
        ("h:80:80", Flaw::Host),
        ("h\\evil.example", Flaw::Host),
        ("h%2eexample", Flaw::Host),
    ] {
        assert_eq!(HttpUrl::of("https", host, "/"), Err(flaw), "{host}");
    }
    let mapped = HttpUrl::of("http", "[::ffff:127.0.0.1]", "/").unwrap();
    assert_ne!(
        mapped.host,
        HttpUrl::of("http", "127.0.0.1", "/").unwrap().host,
        "each form is granted by itself"
    );
}

#[test]
fn ambiguous_paths_are_refused() {
    for (path, flaw) in [
        ("x", Flaw::RelativePath),
        ("*", Flaw::RelativePath),
        ("/a/../b", Flaw::DotSegment),
        ("/a/.", Flaw::DotSegment),
        ("/%2e%2e/b", Flaw::DotSegment),
        ("/.%2E/b", Flaw::DotSegment),
        ("/%252e%252e/b", Flaw::DotSegment),
        ("/%25252e./b", Flaw::DotSegment),
        ("/..;/b", Flaw::DotSegment),
        ("/a%2fb", Flaw::Separator),
        ("/a%252fb", Flaw::Separator),
        ("/a\\b", Flaw::Separator),
        ("/a%5cb", Flaw::Separator),
        ("/a%00b", Flaw::PathCharacter),
        ("/a%0d%0ab", Flaw::PathCharacter),
        ("/a b", Flaw::PathCharacter),
        ("/a\r\nHost: x", Flaw::PathCharacter),
        ("/ü", Flaw::PathCharacter),
        ("/a?b", Flaw::PathCharacter),
        ("/a#b", Flaw::PathCharacter),
        ("/a%", Flaw::Percent),
        ("/a%2", Flaw::Percent),
        ("/a%zz", Flaw::Percent),
        ("/%252525252525252525252525252541", Flaw::Percent),
    ] {
        assert_eq!(Path::parse(path), Err(flaw), "{path}");
    }
}

#[test]
fn prefixes_end_at_segments() {
    let covers =
        |prefix: &str, path: &str| Path::parse(prefix).unwrap().covers(&Path::parse(path).unwrap());
    assert!(covers("/", "/anything/at/all") && covers("", "/"));
    assert!(
        covers("/v1", "/v1")
            && covers("/v1", "/v1/")
            && covers("/v1", "/v1/x")
            && !covers("/v1", "/v10")
    );
    assert!(covers("/v1/", "/v1/x") && covers("/v1/", "/v1/") && !covers("/v1/", "/v1"));
    assert!(covers("/v1", "/%76%31/x"), "encoded letters are the letters");
    assert!(!covers("/v1", "//v1/x") && !covers("/v1", "/V1"));
}

proptest! {
    /// Parsing any text returns a value or an error.
    #[test]
    fn any_text_is_parsed_or_refused(scheme in "\\PC*", authority in "\\PC*", path in "\\PC*") {
        let _ = HttpUrl::of(&scheme, &authority, &path);
        let _ = HttpUrl::parse(&format!("https://{authority}{path}"));
    }

    /// The text of an accepted URL is parsed to the same URL again.
    #[test]
    fn a_parsed_place_is_parsed_again_from_its_text(authority in "[a-z0-9.:\\[\\]-]{1,20}", path in "(/[a-z.%0-9;]{0,6}){0,4}") {
        if let Ok(parsed) = HttpUrl::of("http", &authority, &path) {
            prop_assert_eq!(HttpUrl::parse(&parsed.to_string()), Ok(parsed));
        }
    }

    /// A URL library parses the text of an accepted URL to the same host, port and path.
    #[test]
    fn agrees_with_the_url_standard(authority in "[a-z0-9.:\\[\\]x-]{1,20}", path in "(/[a-z.%0-9;]{0,6}){0,4}") {
        if let Ok(parsed) = HttpUrl::of("http", &authority, &path)
            && !authority.contains("xn--")
        {
            let url = ::url::Url::parse(&parsed.to_string()).unwrap();
            prop_assert_eq!(url.host_str().unwrap(), parsed.host.to_string());
            prop_assert_eq!(url.port_or_known_default(), Some(parsed.port));
            prop_assert_eq!(url.path(), parsed.path.as_str());
        }
    }

    /// A covered path stays below its prefix on a server that decodes once and resolves dots.
    #[test]
    fn nothing_escapes(tail in "(/(\\.|%2e|%2E|%25|2e|;|a|%5c|%2f){0,4}){1,4}") {
        if let Ok(path) = Path::parse(&format!("/v1{tail}")) && Path::parse("/v1/").unwrap().covers(&path) {
            let url = ::url::Url::parse(&format!("http://h{}", path.as_str())).unwrap();
            prop_assert!(url.path().starts_with("/v1/"), "{}", url);
        }
    }
}
