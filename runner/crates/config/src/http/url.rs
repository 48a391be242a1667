//! The destination of an HTTP request: scheme, host, port and path, parsed so strictly that two
//! programs cannot interpret them in different ways.
//!
//! Grants and requests are parsed by the same functions, so that comparing the results is enough.
//! This parser refuses what other parsers accept: user information, addresses in unusual forms, a
//! trailing dot, names that are not ASCII, dot segments and encoded separators. This module is
//! pure: it looks up no names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The supported schemes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// Parses a scheme.
    ///
    /// # Errors
    /// Returns an error if the scheme is not supported.
    pub fn parse(word: &str) -> Result<Self, Flaw> {
        // RFC 3986 section 3.1: schemes are case-insensitive.
        if word.eq_ignore_ascii_case("https") {
            Ok(Self::Https)
        } else if word.eq_ignore_ascii_case("http") {
            Ok(Self::Http)
        } else {
            Err(Flaw::Scheme)
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Returns the port that is used if none is written.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host: a name in lower case, or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name that has to be looked up.
    Name(String),
    /// A literal address. `::ffff:10.0.0.1` is not equal to `10.0.0.1` here; each form is granted
    /// separately.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Maximum length of a name (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// Maximum length of a label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

impl Host {
    fn parse(text: &str) -> Result<Self, Flaw> {
        if let Some(rest) = text.strip_prefix('[') {
            let inner = rest.strip_suffix(']').ok_or(Flaw::Host)?;
            return inner
                .parse::<Ipv6Addr>()
                .map(|address| Self::Address(address.into()))
                .map_err(|_| Flaw::Host);
        }
        if text.is_empty() {
            return Err(Flaw::NoHost);
        }
        if !text.is_ascii() {
            return Err(Flaw::NotAscii);
        }
        if text.ends_with('.') {
            return Err(Flaw::TrailingDot);
        }
        let last = text.rsplit('.').next().unwrap_or(text);
        if is_numeric(last) {
            // `Ipv4Addr` accepts only four decimal numbers without leading zeros. The C library
            // also accepts `127.1`, `0x7f000001`, `017700000001` and `2130706433` for the same
            // address.
            return text
                .parse::<Ipv4Addr>()
                .map(|address| Self::Address(address.into()))
                .map_err(|_| Flaw::OddAddress);
        }
        let label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if text.len() > MAX_NAME || !text.split('.').all(label) {
            return Err(Flaw::Host);
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

/// Returns whether some parser could take a name that ends with this label for an address (WHATWG
/// URL, "ends in a number").
fn is_numeric(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// How often a segment is decoded before it is refused. Servers and the proxies in front of them
/// decode once each.
const MAX_DECODING: usize = 4;

/// A path without its query. Each segment is decoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    segments: Vec<Vec<u8>>,
    text: String,
}

impl Path {
    /// Parses the path of a request or of a grant. An empty path is `/`.
    ///
    /// # Errors
    /// Returns an error if another program could read it as another path.
    pub fn parse(text: &str) -> Result<Self, Flaw> {
        let text = if text.is_empty() { "/" } else { text };
        let rest = text.strip_prefix('/').ok_or(Flaw::RelativePath)?;
        // RFC 3986 section 3.3 allows fewer characters, but it is enough that none of these is a
        // separator.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['?', '#']) {
            return Err(Flaw::PathCharacter);
        }
        let segments = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        Ok(Self { segments, text: text.to_owned() })
    }

    /// Returns whether `other` is this path or below it. `/v1` covers `/v1` and `/v1/x` and not
    /// `/v10`; `/v1/` does not cover `/v1`.
    pub fn covers(&self, other: &Self) -> bool {
        let directory = self.segments.last().is_some_and(Vec::is_empty);
        let prefix = self.segments.len() - usize::from(directory);
        other.segments.len() >= self.segments.len()
            && self.segments.iter().zip(&other.segments).take(prefix).all(|(a, b)| a == b)
    }

    /// Returns the number of segments; a longer path is more specific.
    fn depth(&self) -> usize {
        self.segments.iter().filter(|segment| !segment.is_empty()).count()
    }

    /// Returns the path as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Decodes a segment once. Refuses it if it is, or contains after further decoding, a dot segment
/// or a separator.
fn segment(text: &str) -> Result<Vec<u8>, Flaw> {
    let once = decode(text.as_bytes()).ok_or(Flaw::Percent)?;
    let mut seen = once.clone();
    for round in 0.. {
        // Servers that support path parameters read `..;x` as `..`.
        let name = seen.split(|byte| *byte == b';').next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            return Err(Flaw::DotSegment);
        }
        if seen.iter().any(|byte| matches!(byte, b'/' | b'\\')) {
            return Err(Flaw::Separator);
        }
        if seen.iter().any(u8::is_ascii_control) {
            return Err(Flaw::PathCharacter);
        }
        match decode(&seen) {
            Some(next) if next != seen && round < MAX_DECODING => seen = next,
            Some(next) if next != seen => return Err(Flaw::Percent),
            _ => break,
        }
    }
    Ok(once)
}

/// Decodes percent-encoding; returns `None` if a `%` is not followed by two hexadecimal digits.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            let value = digit()? * 16 + digit()?;
            decoded.push(u8::try_from(value).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// Scheme, host, port and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
    /// The path. For a grant it is the prefix.
    pub path: Path,
}

impl HttpUrl {
    /// Returns the URL of a request from the parts that WASI passes. `authority` is `host` or
    /// `host:port`.
    ///
    /// # Errors
    /// Returns the flaw of the URL.
    pub fn of(scheme: &str, authority: &str, path: &str) -> Result<Self, Flaw> {
        let scheme = Scheme::parse(scheme)?;
        if authority.contains('@') {
            return Err(Flaw::UserInformation);
        }
        let after_host = authority.rfind(']').unwrap_or(0);
        let (host, port) = match authority.rfind(':').filter(|colon| *colon > after_host) {
            Some(colon) => {
                let (host, port) = authority.split_at(colon);
                (host, Some(port.strip_prefix(':').unwrap_or(port)))
            }
            None => (authority, None),
        };
        let port = match port {
            None => scheme.default_port(),
            Some(digits)
                if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0') =>
            {
                digits.parse().map_err(|_| Flaw::Port)?
            }
            Some(_) => return Err(Flaw::Port),
        };
        Ok(Self { scheme, host: Host::parse(host)?, port, path: Path::parse(path)? })
    }

    /// Parses the URL of a grant: a URL without query and fragment.
    ///
    /// # Errors
    /// Returns the flaw of the URL.
    pub fn parse(url: &str) -> Result<Self, Flaw> {
        let (scheme, rest) = url.split_once("://").ok_or(Flaw::Scheme)?;
        if rest.contains(['?', '#']) {
            return Err(Flaw::Query);
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        Self::of(scheme, authority, path)
    }

    /// Returns whether `other` is this URL or below it.
    pub fn covers(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.host == other.host
            && self.port == other.port
            && self.path.covers(&other.path)
    }

    /// Returns the length of its path, to choose the most specific of several grants.
    pub fn depth(&self) -> usize {
        self.path.depth()
    }

    /// Returns `host`, or `host:port` if the port is not the default of the scheme: the Host header
    /// (RFC 9110 section 7.2).
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns the origin with the port, such as `https://api.example.org:443`.
    pub fn origin(&self) -> String {
        format!("{}://{}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

/// Writes the URL as it would be written in a grant.
impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.path.as_str())
    }
}

/// The flaw of a URL: a fragment that follows the text of the URL and contains the fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The scheme is neither http nor https.
    #[error("has a scheme that is not known; write `https://` or `http://`")]
    Scheme,
    #[error("names no host; write `https://host/path`")]
    NoHost,
    /// The host is neither a name nor an address.
    #[error(
        "has a host that is neither a name nor an address; write letters, digits, `-` and dots, or an IPv6 address in brackets"
    )]
    Host,
    #[error("has a host that is not ASCII; write its `xn--` form")]
    NotAscii,
    /// The host ends with a dot.
    #[error("has a host with a trailing dot; remove the dot")]
    TrailingDot,
    /// The address is decimal, octal, hexadecimal or shortened.
    #[error("has an address in an unusual form; write four decimal numbers, such as `192.0.2.1`")]
    OddAddress,
    /// The authority contains `user@`.
    #[error(
        "holds a user name or a password; write it without, and let a credential of the configuration log in"
    )]
    UserInformation,
    #[error("has an invalid port; write a number from 1 to 65535 without leading zeros")]
    Port,
    /// The path does not start with `/`.
    #[error("has a path that does not start with `/`; add the `/`")]
    RelativePath,
    /// The path contains spaces, control characters or characters that are not ASCII.
    #[error("has a path with a character that does not belong there; percent-encode it as UTF-8")]
    PathCharacter,
    /// A `%` without two digits, or a character that is encoded several times.
    #[error("has a path with a damaged or repeated percent-encoding; encode once")]
    Percent,
    /// The path contains `.` or `..` as a segment.
    #[error("has a path with `.` or `..` in it, plain or encoded; write the path it stands for")]
    DotSegment,
    /// The path contains `\`, `%2f` or `%5c`.
    #[error("has a path with a backslash or an encoded slash; write a plain `/` between segments")]
    Separator,
    /// The URL of a grant contains `?` or `#`.
    #[error("has a query or a fragment; write only the path, which covers all queries")]
    Query,
}

#[cfg(test)]
mod tests;
