//! Which capabilities a plugin has: a pure decision from two keys. What the plugin's metadata *wants* and what the
//! configuration *grants* must agree; imports decide nothing, because toolchains import more than a plugin uses.
//!
//! An empty grant grants nothing. A refusal names the line that would change it.

use serde::{Deserialize, Serialize};

use crate::config::{Grant, StoreScope};

/// How much a plugin wants a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// Not at all; calls are refused even if it is granted.
    #[default]
    No,
    /// It works without.
    Optional,
    /// It does not load without.
    Required,
}

/// What a plugin wants: `wants` of its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Wants {
    /// The least scope it works with.
    pub nix_store: StoreScope,
    /// An object store.
    pub object_store: Want,
    /// A signing key.
    pub signing: Want,
    /// A mail transport.
    pub mail: Want,
    /// A durable key-value store.
    pub state: Want,
}

/// What one host call needs. `Log` and `Config` are always granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need<'a> {
    /// `log`.
    Log,
    /// `config`.
    Config,
    /// `state`.
    State,
    /// `nix-store`; which paths is checked where they are resolved, against [`Effective::nix_store`].
    NixStore,
    /// `object-store`, this one.
    ObjectStore(&'a str),
    /// `signing`, without a key: which are granted.
    SigningKeys,
    /// `signing`, with this key.
    Signing(&'a str),
    /// `mail`, through this transport.
    Mail(&'a str),
    /// An interface of WASI that every guest has: clocks, random numbers, polls, the streams of what it was given.
    Wasi(&'static str),
}

impl Need<'_> {
    /// The interface of `hookrun:host`.
    pub const fn interface(&self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Config => "config",
            Self::State => "state",
            Self::NixStore => "nix-store",
            Self::ObjectStore(_) => "object-store",
            Self::SigningKeys | Self::Signing(_) => "signing",
            Self::Mail(_) => "mail",
            Self::Wasi(interface) => interface,
        }
    }
}

/// What a plugin has: wanted and granted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effective {
    /// How much of the Nix store it may read.
    pub nix_store: StoreScope,
    /// The object stores it may use.
    pub object_store: Vec<String>,
    /// The keys it may have things signed with.
    pub signing: Vec<String>,
    /// The mail transports it may use.
    pub mail: Vec<String>,
    /// Has it a key-value store?
    pub state: bool,
}

/// A wanted capability without a grant: the line to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The interface.
    pub interface: &'static str,
    /// Such as `nix-store = "closure"`.
    pub line: String,
}

/// What the configuration could grant, so that a message names something that is there.
#[derive(Debug, Clone, Copy)]
pub struct Defined<'a> {
    /// The first of `[object-stores]`.
    pub object_store: Option<&'a str>,
    /// The first of `[signing-keys]`.
    pub signing: Option<&'a str>,
    /// The first of `[mail]`.
    pub mail: Option<&'a str>,
}

impl Effective {
    /// Decides.
    ///
    /// # Errors
    /// The first capability that is required and not granted.
    pub fn decide(wants: &Wants, grant: &Grant, defined: Defined<'_>) -> Result<Self, Missing> {
        let Wants { nix_store, object_store, signing, mail, state } = wants;
        let Grant { nix_store: granted_scope, object_store: stores, signing: keys, mail: transports, state: granted_state } =
            grant;
        if rank(*granted_scope) < rank(*nix_store) {
            return Err(Missing { interface: "nix-store", line: format!("nix-store = \"{}\"", word(*nix_store)) });
        }
        let names = |interface, want, granted: &[String], example: Option<&str>| match want {
            Want::No => Ok(Vec::new()),
            Want::Required if granted.is_empty() => {
                Err(Missing { interface, line: format!("{interface} = [\"{}\"]", example.unwrap_or("NAME")) })
            }
            Want::Optional | Want::Required => Ok(granted.to_vec()),
        };
        let object_store = names("object-store", *object_store, stores, defined.object_store)?;
        let signing = names("signing", *signing, keys, defined.signing)?;
        let mail = names("mail", *mail, transports, defined.mail)?;
        if *state == Want::Required && !granted_state {
            return Err(Missing { interface: "state", line: "state = true".to_owned() });
        }
        // The lesser of the two: a plugin that wants `outputs` gets no more for a generous grant.
        Ok(Self { nix_store: *nix_store, object_store, signing, mail, state: *state != Want::No && *granted_state })
    }

    /// May a plugin with these capabilities, that `wants` and was granted so, make the call?
    ///
    /// # Errors
    /// A fragment that names the capability and the line to write, without the plugin and the file.
    pub fn check(&self, wants: &Wants, need: Need<'_>) -> Result<(), Refusal> {
        let interface = need.interface();
        let wanted = match need {
            Need::Log | Need::Config | Need::Wasi(_) => true,
            Need::State => wants.state != Want::No,
            Need::NixStore => wants.nix_store != StoreScope::None,
            Need::ObjectStore(_) => wants.object_store != Want::No,
            Need::SigningKeys | Need::Signing(_) => wants.signing != Want::No,
            Need::Mail(_) => wants.mail != Want::No,
        };
        if !wanted {
            return Err(Refusal::Unwanted { interface });
        }
        let named = |granted: &[String], name: &str| {
            if granted.iter().any(|granted| granted == name) {
                return Ok(());
            }
            let names: Vec<String> =
                granted.iter().map(String::as_str).chain([name]).map(|name| format!("{name:?}")).collect();
            Err(Refusal::Ungranted {
                interface,
                name: Some(name.to_owned()),
                line: format!("{interface} = [{}]", names.join(", ")),
            })
        };
        match need {
            Need::State if !self.state => Err(Refusal::Ungranted { interface, name: None, line: "state = true".to_owned() }),
            Need::Log | Need::Config | Need::State | Need::NixStore | Need::SigningKeys | Need::Wasi(_) => Ok(()),
            Need::ObjectStore(name) => named(&self.object_store, name),
            Need::Signing(name) => named(&self.signing, name),
            Need::Mail(name) => named(&self.mail, name),
        }
    }
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
        }
    }
}

const fn rank(scope: StoreScope) -> u8 {
    match scope {
        StoreScope::None => 0,
        StoreScope::Outputs => 1,
        StoreScope::Closure => 2,
    }
}

/// The word of a scope in the configuration.
pub const fn word(scope: StoreScope) -> &'static str {
    match scope {
        StoreScope::None => "none",
        StoreScope::Outputs => "outputs",
        StoreScope::Closure => "closure",
    }
}

#[cfg(test)]
mod tests;
