//! `http` of a grant and `[http-credentials.NAME]`: where a plugin may send requests, and which
//! credentials the host adds to them.
//!
//! This module is pure: it decides from values alone whether a request is covered. It does not open
//! files or look up names.

mod credential;
pub mod url;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::Error as _;

pub(super) use credential::CredentialTable;
pub use credential::{AWS_HEADERS, HttpCredential};
pub use url::{Flaw, Host, HttpUrl, Scheme};

/// One element of `http` in `[plugins.NAME.grant]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
pub struct HttpGrant {
    /// The URL to which requests may be sent. The key is required. `None` means everywhere, which
    /// only `hookrun test` grants to a plugin that is in no configuration.
    #[serde(deserialize_with = "required_url")]
    pub url: Option<HttpUrl>,
    /// Request methods, as they are sent.
    #[serde(default = "default_methods", deserialize_with = "methods")]
    pub methods: Vec<String>,
    /// Networks that may be reached although they are not public.
    #[serde(default, deserialize_with = "networks")]
    pub address: Vec<IpNet>,
    /// A file with certificate authorities that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A name of `[http-credentials]`.
    pub credential: Option<String>,
}

/// `GET, POST https://api.example.org/v1/`
impl fmt::Display for HttpGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "{} {url}", self.methods.join(", ")),
            None => f.write_str("everything"),
        }
    }
}

/// The methods that are allowed if `methods` is not set: those that change nothing (RFC 9110
/// section 9.2.1).
const DEFAULT_METHODS: [&str; 2] = ["GET", "HEAD"];

/// Methods that cannot be granted: CONNECT turns the connection into a tunnel, and TRACE returns
/// the request with the host's credential (RFC 9110 section 9.3.8).
const NEVER: [&str; 2] = ["CONNECT", "TRACE"];

/// The method and the URL of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// The method, as it is sent.
    pub method: String,
    pub url: HttpUrl,
}

impl fmt::Display for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.method, self.url.origin(), self.url.path.as_str())
    }
}

/// The reason why no grant covers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpMiss {
    /// No grant covers the URL.
    Url(HttpTarget),
    /// A grant covers the URL but not the method.
    Method {
        target: HttpTarget,
        /// The URL of the nearest grant.
        grant: HttpUrl,
        methods: Vec<String>,
    },
}

impl HttpGrant {
    /// Returns a grant of everything, for `hookrun test` of a plugin that is in no configuration.
    /// Such requests are not sent.
    pub fn everything() -> Self {
        Self {
            url: None,
            methods: Vec::new(),
            address: Vec::new(),
            ca_file: None,
            credential: None,
        }
    }

    fn covers(&self, url: &HttpUrl) -> bool {
        self.url.as_ref().is_none_or(|granted| granted.covers(url))
    }

    fn allows(&self, method: &str) -> bool {
        self.url.is_none() || self.methods.iter().any(|allowed| allowed == method)
    }

    fn depth(&self) -> usize {
        self.url.as_ref().map_or(0, HttpUrl::depth)
    }
}

/// Returns the grant that covers `target`. If there are several, it is the one with the longest
/// path, which is the most specific.
///
/// # Errors
/// Returns an error if no grant covers it.
pub fn granting<'a>(
    grants: &'a [HttpGrant],
    target: &HttpTarget,
) -> Result<&'a HttpGrant, Box<HttpMiss>> {
    let covering = || grants.iter().filter(|grant| grant.covers(&target.url));
    // `max_by_key` returns the last of equal elements, but the first one should count.
    let narrowest = |grants: &mut dyn DoubleEndedIterator<Item = &'a HttpGrant>| {
        grants.rev().max_by_key(|grant| grant.depth())
    };
    if let Some(grant) = narrowest(&mut covering().filter(|grant| grant.allows(&target.method))) {
        return Ok(grant);
    }
    Err(Box::new(
        match narrowest(&mut covering())
            .and_then(|grant| Some((grant.url.clone()?, &grant.methods)))
        {
            Some((grant, methods)) => {
                HttpMiss::Method { target: target.clone(), grant, methods: methods.clone() }
            }
            None => HttpMiss::Url(target.clone()),
        },
    ))
}

impl HttpMiss {
    /// The message for `plugin`, configured in `file`: what was asked for, and the lines to write.
    pub fn message(&self, plugin: &str, file: &std::path::Path) -> String {
        let list = |methods: &[&str]| {
            methods.iter().map(|method| format!("{method:?}")).collect::<Vec<_>>().join(", ")
        };
        let file = file.display();
        let (Self::Url(target) | Self::Method { target, .. }) = self;
        if NEVER.contains(&target.method.as_str()) {
            return format!(
                "plugin `{plugin}` asked for http `{target}`, and no grant can give {}; its author must remove the request",
                target.method
            );
        }
        match self {
            Self::Url(target) => {
                let HttpTarget { method, url } = target;
                let methods = if DEFAULT_METHODS.contains(&method.as_str()) {
                    String::new()
                } else {
                    format!(" and `methods = [{}]`", list(&[method]))
                };
                format!(
                    "plugin `{plugin}` has no grant for http `{target}`; write `[[plugins.{plugin}.grant.http]]` with \
                     `url = \"{url}\"`{methods} in {file}"
                )
            }
            Self::Method { target, grant, methods } => {
                let methods: Vec<&str> =
                    methods.iter().map(String::as_str).chain([target.method.as_str()]).collect();
                format!(
                    "plugin `{plugin}` has no grant for the method of http `{target}`; write `methods = [{}]` beside \
                     `url = \"{grant}\"` under [[plugins.{plugin}.grant.http]] in {file}",
                    list(&methods)
                )
            }
        }
    }
}

/// Returns the TCP ports that these grants need, for a sandbox that allows connections to named
/// ports only.
pub fn ports(grants: &[HttpGrant]) -> BTreeSet<u16> {
    grants.iter().filter_map(|grant| Some(grant.url.as_ref()?.port)).collect()
}

/// Checks the keys in combination.
impl<'de> Deserialize<'de> for HttpGrant {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let grant = Self::deserialize(deserializer)?;
        let Self { url: Some(url), methods, ca_file, credential, .. } = &grant else {
            return Ok(grant);
        };
        if methods.is_empty() {
            return Err(D::Error::custom(format!(
                "`methods` of `{url}` is empty; write `methods = [\"GET\"]`, or remove it"
            )));
        }
        if ca_file.is_some() && url.scheme == Scheme::Http {
            return Err(D::Error::custom(format!(
                "`ca-file` of `{url}` is for https:// only; write that, or remove `ca-file`"
            )));
        }
        if credential.is_some() && url.scheme == Scheme::Http && !is_loopback(&url.host) {
            return Err(D::Error::custom(format!(
                "`{url}` would send a credential over the network in clear text; write `https://`, or remove `credential`"
            )));
        }
        Ok(grant)
    }
}

fn required_url<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<HttpUrl>, D::Error> {
    HttpUrl::deserialize(deserializer).map(Some)
}

fn default_methods() -> Vec<String> {
    DEFAULT_METHODS.map(str::to_owned).to_vec()
}

fn methods<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let methods = Vec::deserialize(deserializer)?;
    Ok(methods.into_iter().map(|Method(method)| method).collect())
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let networks = Vec::deserialize(deserializer)?;
    Ok(networks.into_iter().map(|Network(network)| network).collect())
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Name(name) => name == "localhost",
        Host::Address(address) => address.is_loopback(),
    }
}

impl<'de> Deserialize<'de> for HttpUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|flaw| {
            // The URL is never quoted with its user information, because that could show a
            // password.
            let shown =
                if flaw == Flaw::UserInformation { String::new() } else { format!(" `{text}`") };
            D::Error::custom(format!("the url{shown} {flaw}"))
        })
    }
}

/// An element of `methods`. It is checked here, where its line is known.
struct Method(String);

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if NEVER.contains(&text.to_ascii_uppercase().as_str()) {
            return Err(D::Error::custom(format!(
                "the method `{text}` is never granted; remove it"
            )));
        }
        let token =
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if token {
            Ok(Self(text))
        } else {
            Err(D::Error::custom(format!(
                "`{text}` is not a valid method; write it in capitals, such as `GET`"
            )))
        }
    }
}

/// An element of `address`.
struct Network(IpNet);

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network: Option<IpNet> =
            text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
        let network = network.ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a valid network; write for example \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.1\""
            ))
        })?;
        if network.trunc() != network {
            return Err(D::Error::custom(format!(
                "`{text}` is an address within a network; write \"{}\"",
                network.trunc()
            )));
        }
        Ok(Self(network))
    }
}

#[cfg(test)]
mod tests;
