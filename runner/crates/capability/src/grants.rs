//! Decides which capabilities a plugin has. It has a capability if its metadata *wants* it and the
//! configuration *grants* it. Imports are not considered, because toolchains import more than a
//! plugin uses.
//!
//! An empty grant grants nothing. A refusal names the line that would change it.

use std::ops::Deref;

use hookrun_config::http::{self, HttpMiss, HttpTarget};
use hookrun_config::{Capability, Config, Grant};
pub use hookrun_config::{Want, Wants};

/// The requirement of one host call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need<'a> {
    /// Every guest has this interface of `hookrun:host`.
    Nothing(&'static str),
    /// Every guest has this interface of WASI, such as clocks and random numbers.
    Wasi(&'static str),
    /// The capability must be wanted, but its grant may be empty: the call asks what is granted, or
    /// cannot be compared with a grant.
    Wanted(Capability),
    /// The capability must be wanted and granted. The service checks what exactly is granted.
    Granted(Capability),
    /// The capability must be granted for this table of the configuration.
    Named(Capability, &'a str),
    /// `http` must be granted for this request.
    Http(&'a HttpTarget),
}

impl Need<'_> {
    /// Returns the capability that must be wanted and granted. `None` if every guest has the
    /// interface.
    pub const fn capability(&self) -> Option<Capability> {
        match self {
            Self::Nothing(_) | Self::Wasi(_) => None,
            Self::Wanted(capability) | Self::Granted(capability) | Self::Named(capability, _) => {
                Some(*capability)
            }
            Self::Http(_) => Some(Capability::Http),
        }
    }

    /// Returns the interface of `hookrun:host` or of WASI, or `http` for `wasi:http`.
    pub const fn interface(&self) -> &'static str {
        match self {
            Self::Nothing(interface) | Self::Wasi(interface) => interface,
            Self::Wanted(capability) | Self::Granted(capability) | Self::Named(capability, _) => {
                capability.name()
            }
            Self::Http(_) => Capability::Http.name(),
        }
    }
}

/// The capabilities of a plugin: those that are both wanted and granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effective {
    /// The part of its grant that the plugin wants.
    pub grant: Grant,
    /// Whether it is a policy of builder selection, which has only `log`, `config` and `state`.
    pub policy: bool,
}

impl Deref for Effective {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

/// A required capability that is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub interface: &'static str,
    /// The line to write, such as `nix-store = "closure"`.
    pub line: String,
}

impl Effective {
    /// Returns the part of `grant` that is wanted. An empty grant grants nothing, and a wider grant
    /// than wanted grants only what is wanted.
    pub fn of(wants: &Wants, grant: &Grant) -> Self {
        let mut grant = grant.clone();
        for capability in Capability::ALL {
            capability.restrict(&mut grant, wants);
        }
        Self { grant, policy: false }
    }

    /// Returns [`Effective::of`] for a plugin that is about to run. `config` has the names for
    /// messages.
    ///
    /// # Errors
    /// Returns the capabilities that are required and not granted.
    pub fn decide(wants: &Wants, grant: &Grant, config: &Config) -> Result<Self, Vec<Missing>> {
        let missing = missing(wants, grant, config);
        if missing.is_empty() { Ok(Self::of(wants, grant)) } else { Err(missing) }
    }

    /// Checks whether a plugin with these capabilities and these `wants` may make the call.
    ///
    /// # Errors
    /// Returns a fragment that names the capability and the line to write, without the plugin and
    /// the file.
    pub fn check(&self, wants: &Wants, need: Need<'_>) -> Result<(), Refusal> {
        let Some(capability) = need.capability() else { return Ok(()) };
        let interface = capability.name();
        if self.policy && !capability.is_for_policies() {
            return Err(Refusal::Policy { interface });
        }
        if wants.of(capability) == Want::No {
            return Err(Refusal::Unwanted { interface });
        }
        let granted = match need {
            Need::Nothing(_) | Need::Wasi(_) | Need::Wanted(_) => return Ok(()),
            Need::Http(target) => {
                return http::granting(&self.http, target).map(|_| ()).map_err(Refusal::Http);
            }
            Need::Granted(_) | Need::Named(..) => capability.granted(self),
        };
        let (name, line) = match need {
            Need::Named(_, name) if !granted.iter().any(|granted| granted == name) => {
                let names = granted.iter().map(String::as_str).chain([name]);
                let names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
                (Some(name.to_owned()), format!("{interface} = [{}]", names.join(", ")))
            }
            Need::Granted(_) if granted.is_empty() => (None, capability.line(wants, "NAME")),
            _ => return Ok(()),
        };
        Err(Refusal::Ungranted { interface, name, line })
    }
}

/// Returns the capabilities that are required and not granted.
fn missing(wants: &Wants, grant: &Grant, config: &Config) -> Vec<Missing> {
    let lacking = |capability: &Capability| !capability.is_covered(grant, wants);
    let missing = |capability: Capability| {
        let names = capability.section().map(|section| config.names(section)).unwrap_or_default();
        let example = names.first().copied().unwrap_or("NAME");
        Missing { interface: capability.name(), line: capability.line(wants, example) }
    };
    Capability::ALL.into_iter().filter(lacking).map(missing).collect()
}

/// The reason why a host call was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The plugin's metadata does not ask for it.
    Unwanted { interface: &'static str },
    /// The configuration does not grant it.
    Ungranted { interface: &'static str, name: Option<String>, line: String },
    /// A policy of builder selection cannot have it, even if it is granted.
    Policy { interface: &'static str },
    /// No grant covers an HTTP request.
    Http(Box<HttpMiss>),
}

impl Refusal {
    /// Returns the message for `plugin`, which `file` configures.
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
