//! Decides which capabilities a plugin has. It has a capability if its metadata *wants* it and the
//! configuration *grants* it. Imports decide nothing, because toolchains import more than a plugin
//! uses.
//!
//! An empty grant grants nothing. A refusal names the line that would change it.

use std::ops::Deref;

use hookrun_config::http::{self, HttpMiss, HttpTarget};
use hookrun_config::{Capability, Config, Grant};
pub use hookrun_config::{Want, Wants};

/// What one host call needs. `log` and `config` need no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need<'a> {
    /// `log`.
    Log,
    /// `config`.
    Config,
    /// `state`.
    State,
    /// `nix-store`. Which paths is checked where they are resolved.
    NixStore,
    /// `object-store`, this one.
    ObjectStore(&'a str),
    /// `signing`, without a key: which keys are granted.
    SigningKeys,
    /// `signing`, with this key.
    Signing(&'a str),
    /// `mail`, through this transport.
    Mail(&'a str),
    /// An interface of WASI that every guest has: clocks, random numbers, polls, the streams of
    /// what it was given.
    Wasi(&'static str),
    /// `http`, without a URL: whether it can be used at all.
    AnyHttp,
    /// `http`, this request.
    Http(&'a HttpTarget),
}

impl Need<'_> {
    /// The capability that has to be wanted and granted; none for what every guest has.
    pub const fn capability(&self) -> Option<Capability> {
        match self {
            Self::Log | Self::Config | Self::Wasi(_) => None,
            Self::State => Some(Capability::State),
            Self::NixStore => Some(Capability::NixStore),
            Self::ObjectStore(_) => Some(Capability::ObjectStore),
            Self::SigningKeys | Self::Signing(_) => Some(Capability::Signing),
            Self::Mail(_) => Some(Capability::Mail),
            Self::AnyHttp | Self::Http(_) => Some(Capability::Http),
        }
    }

    /// The interface of `hookrun:host`, or `http` for `wasi:http`.
    pub const fn interface(&self) -> &'static str {
        match (self, self.capability()) {
            (_, Some(capability)) => capability.name(),
            (Self::Wasi(interface), None) => interface,
            (Self::Config, None) => "config",
            (_, None) => "log",
        }
    }
}

/// What a plugin has: wanted and granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effective {
    /// The part of its grant that it wants.
    pub grant: Grant,
    /// Whether it is a policy of builder selection, which gets `log`, `config` and `state` only.
    pub policy: bool,
}

impl Deref for Effective {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

/// A required capability without a grant: the line to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The interface.
    pub interface: &'static str,
    /// Such as `nix-store = "closure"`.
    pub line: String,
}

impl Effective {
    /// Returns the part of `grant` that is wanted. An empty grant gives nothing, and a generous one
    /// no more than is wanted.
    pub fn of(wants: &Wants, grant: &Grant) -> Self {
        let mut grant = grant.clone();
        grant.nix_store = grant.nix_store.min(wants.nix_store);
        for capability in Capability::ALL {
            if wants.of(capability) == Want::No {
                capability.revoke(&mut grant);
            }
        }
        Self { grant, policy: false }
    }

    /// As [`Effective::of`], for a plugin that is to run. `config` has the names for messages.
    ///
    /// # Errors
    /// The capabilities that are required and not granted.
    pub fn decide(wants: &Wants, grant: &Grant, config: &Config) -> Result<Self, Vec<Missing>> {
        let missing = missing(wants, grant, config);
        if missing.is_empty() { Ok(Self::of(wants, grant)) } else { Err(missing) }
    }

    /// Checks whether a plugin with these capabilities, that `wants` so much, may make the call.
    ///
    /// # Errors
    /// A fragment that names the capability and the line to write, without the plugin and the file.
    pub fn check(&self, wants: &Wants, need: Need<'_>) -> Result<(), Refusal> {
        let Some(capability) = need.capability() else { return Ok(()) };
        let interface = capability.name();
        if self.policy && !capability.is_for_policies() {
            return Err(Refusal::Policy { interface });
        }
        if wants.of(capability) == Want::No {
            return Err(Refusal::Unwanted { interface });
        }
        let named = |granted: &[String], name: &str| {
            if granted.iter().any(|granted| granted == name) {
                return Ok(());
            }
            let names: Vec<String> = granted
                .iter()
                .map(String::as_str)
                .chain([name])
                .map(|name| format!("{name:?}"))
                .collect();
            Err(Refusal::Ungranted {
                interface,
                name: Some(name.to_owned()),
                line: format!("{interface} = [{}]", names.join(", ")),
            })
        };
        match need {
            Need::State | Need::NixStore if capability.granted(self).is_empty() => {
                let line = capability.line(wants, "");
                Err(Refusal::Ungranted { interface, name: None, line })
            }
            Need::ObjectStore(name) => named(&self.object_store, name),
            Need::Signing(name) => named(&self.signing, name),
            Need::Mail(name) => named(&self.mail, name),
            Need::Http(target) => {
                http::granting(&self.http, target).map(|_| ()).map_err(Refusal::Http)
            }
            Need::Log
            | Need::Config
            | Need::State
            | Need::NixStore
            | Need::SigningKeys
            | Need::AnyHttp
            | Need::Wasi(_) => Ok(()),
        }
    }
}

/// Returns the capabilities that are required and not granted.
fn missing(wants: &Wants, grant: &Grant, config: &Config) -> Vec<Missing> {
    let lacking = |capability: &Capability| match capability {
        Capability::NixStore => grant.nix_store < wants.nix_store,
        other => wants.of(*other) == Want::Required && other.granted(grant).is_empty(),
    };
    let missing = |capability: Capability| {
        let names = capability.section().map(|section| config.names(section)).unwrap_or_default();
        let example = names.first().copied().unwrap_or("NAME");
        Missing { interface: capability.name(), line: capability.line(wants, example) }
    };
    Capability::ALL.into_iter().filter(lacking).map(missing).collect()
}

/// Why a host call was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The plugin's metadata does not ask for it.
    Unwanted {
        /// The interface.
        interface: &'static str,
    },
    /// The configuration does not grant it.
    Ungranted {
        /// The interface.
        interface: &'static str,
        /// What was asked for.
        name: Option<String>,
        /// The line to write.
        line: String,
    },
    /// A policy of builder selection may not have it, whatever is granted.
    Policy {
        /// The interface.
        interface: &'static str,
    },
    /// No grant covers an HTTP request.
    Http(Box<HttpMiss>),
}

impl Refusal {
    /// The message for `plugin`, configured in `file`.
    pub fn message(&self, plugin: &str, file: &std::path::Path) -> String {
        match self {
            Self::Unwanted { interface } => format!(
                "plugin `{plugin}` may not use `{interface}`: its metadata does not ask for it; its author must add \
                 `{interface}` to the plugin's `wants`"
            ),
            Self::Ungranted { interface, name, line } => {
                let name = name.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default();
                format!(
                    "plugin `{plugin}` has no grant for {interface}{name}; write `{line}` under [plugins.{plugin}.grant] in {}",
                    file.display()
                )
            }
            Self::Policy { interface } => format!(
                "plugin `{plugin}` may not use `{interface}`: a policy of builder selection has `log`, `config` and `state` only; its \
                 author must remove the call"
            ),
            Self::Http(miss) => miss.message(plugin, file),
        }
    }
}

#[cfg(test)]
mod tests;
