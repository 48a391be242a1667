//! Which capabilities a plugin has: a pure decision from two keys. What the plugin's metadata
//! *wants* and what the configuration *grants* must agree; imports decide nothing, because
//! toolchains import more than a plugin uses.
//!
//! An empty grant grants nothing. A refusal names the line that would change it.

use serde::{Deserialize, Serialize};

use hookrun_config::http::{self, HttpMiss, HttpTarget};
use hookrun_config::{Grant, HttpGrant, StoreScope};

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
    /// HTTP requests (`wasi:http`).
    pub http: Want,
}

impl Wants {
    /// What is left of it for a policy of builder selection: [`Effective::policy`].
    #[must_use]
    pub fn of_policy(&self) -> Self {
        Self { state: self.state, ..Self::default() }
    }

    /// The interfaces, quoted, without which the plugin does not load and which no policy gets.
    pub fn required_beyond_policy(&self) -> Vec<String> {
        let Self { nix_store, object_store, signing, mail, state: _, http } = self;
        let required = [
            ("nix-store", *nix_store != StoreScope::None),
            ("object-store", *object_store == Want::Required),
            ("signing", *signing == Want::Required),
            ("mail", *mail == Want::Required),
            ("http", *http == Want::Required),
        ];
        let required = required.into_iter().filter(|(_, required)| *required);
        required.map(|(interface, _)| format!("`{interface}`")).collect()
    }
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
    /// `nix-store`; which paths is checked where they are resolved, against
    /// [`Effective::nix_store`].
    NixStore,
    /// `object-store`, this one.
    ObjectStore(&'a str),
    /// `signing`, without a key: which are granted.
    SigningKeys,
    /// `signing`, with this key.
    Signing(&'a str),
    /// `mail`, through this transport.
    Mail(&'a str),
    /// An interface of WASI that every guest has: clocks, random numbers, polls, the streams of
    /// what it was given.
    Wasi(&'static str),
    /// `http`, without a place: whether it is there at all.
    AnyHttp,
    /// `http`, this request.
    Http(&'a HttpTarget),
}

impl Need<'_> {
    /// The interface of `hookrun:host`, or `http` for `wasi:http`.
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
            Self::AnyHttp | Self::Http(_) => "http",
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
    /// Where it may send HTTP requests.
    pub http: Vec<HttpGrant>,
    /// Is it a policy of builder selection? Then it gets `log`, `config` and `state` only: Nix
    /// stands still while it thinks, and what it answers is to follow from what it was asked.
    pub policy: bool,
}

/// The interfaces of a grant that a policy of builder selection may not have.
pub fn beyond_policy(grant: &Grant) -> Vec<&'static str> {
    let Grant { nix_store, object_store, signing, mail, state: _, http } = grant;
    let granted = [
        ("nix-store", *nix_store != StoreScope::None),
        ("object-store", !object_store.is_empty()),
        ("signing", !signing.is_empty()),
        ("mail", !mail.is_empty()),
        ("http", !http.is_empty()),
    ];
    granted.into_iter().filter(|(_, granted)| *granted).map(|(interface, _)| interface).collect()
}

/// A required capability without a grant: the line to write.
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
    /// What a plugin has that `wants` this and was granted that. An empty grant grants nothing, and
    /// a generous one no more than is wanted.
    pub fn of(wants: &Wants, grant: &Grant) -> Self {
        let Wants { nix_store, object_store, signing, mail, state, http } = wants;
        let Grant {
            nix_store: granted_scope,
            object_store: stores,
            signing: keys,
            mail: transports,
            state: granted_state,
            http: places,
        } = grant;
        let names =
            |want, granted: &[String]| if want == Want::No { Vec::new() } else { granted.to_vec() };
        Self {
            nix_store: if rank(*granted_scope) < rank(*nix_store) {
                *granted_scope
            } else {
                *nix_store
            },
            object_store: names(*object_store, stores),
            signing: names(*signing, keys),
            mail: names(*mail, transports),
            state: *state != Want::No && *granted_state,
            http: if *http == Want::No { Vec::new() } else { places.clone() },
            policy: false,
        }
    }

    /// As [`Effective::of`], for a plugin that is to run.
    ///
    /// # Errors
    /// The capabilities that are required and not granted.
    pub fn decide(
        wants: &Wants,
        grant: &Grant,
        defined: Defined<'_>,
    ) -> Result<Self, Vec<Missing>> {
        let missing = missing(wants, grant, defined);
        if missing.is_empty() { Ok(Self::of(wants, grant)) } else { Err(missing) }
    }

    /// May a plugin with these capabilities, that `wants` and was granted so, make the call?
    ///
    /// # Errors
    /// A fragment that names the capability and the line to write, without the plugin and the file.
    pub fn check(&self, wants: &Wants, need: Need<'_>) -> Result<(), Refusal> {
        let interface = need.interface();
        if self.policy && !matches!(need, Need::Log | Need::Config | Need::State | Need::Wasi(_)) {
            return Err(Refusal::Policy { interface });
        }
        let wanted = match need {
            Need::Log | Need::Config | Need::Wasi(_) => true,
            Need::State => wants.state != Want::No,
            Need::NixStore => wants.nix_store != StoreScope::None,
            Need::ObjectStore(_) => wants.object_store != Want::No,
            Need::SigningKeys | Need::Signing(_) => wants.signing != Want::No,
            Need::Mail(_) => wants.mail != Want::No,
            Need::AnyHttp | Need::Http(_) => wants.http != Want::No,
        };
        if !wanted {
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
            Need::State if !self.state => {
                Err(Refusal::Ungranted { interface, name: None, line: "state = true".to_owned() })
            }
            Need::NixStore if self.nix_store == StoreScope::None => {
                let line = format!("nix-store = \"{}\"", word(wants.nix_store));
                Err(Refusal::Ungranted { interface, name: None, line })
            }
            Need::Log
            | Need::Config
            | Need::State
            | Need::NixStore
            | Need::SigningKeys
            | Need::AnyHttp
            | Need::Wasi(_) => Ok(()),
            Need::ObjectStore(name) => named(&self.object_store, name),
            Need::Signing(name) => named(&self.signing, name),
            Need::Mail(name) => named(&self.mail, name),
            Need::Http(target) => {
                http::granting(&self.http, target).map(|_| ()).map_err(Refusal::Http)
            }
        }
    }
}

/// The capabilities that are required and not granted.
fn missing(wants: &Wants, grant: &Grant, defined: Defined<'_>) -> Vec<Missing> {
    let Wants { nix_store, object_store, signing, mail, state, http } = wants;
    let mut missing = Vec::new();
    if rank(grant.nix_store) < rank(*nix_store) {
        missing.push(Missing {
            interface: "nix-store",
            line: format!("nix-store = \"{}\"", word(*nix_store)),
        });
    }
    for (interface, want, granted, example) in [
        ("object-store", object_store, &grant.object_store, defined.object_store),
        ("signing", signing, &grant.signing, defined.signing),
        ("mail", mail, &grant.mail, defined.mail),
    ] {
        if *want == Want::Required && granted.is_empty() {
            missing.push(Missing {
                interface,
                line: format!("{interface} = [\"{}\"]", example.unwrap_or("NAME")),
            });
        }
    }
    if *state == Want::Required && !grant.state {
        missing.push(Missing { interface: "state", line: "state = true".to_owned() });
    }
    if *http == Want::Required && grant.http.is_empty() {
        missing.push(Missing {
            interface: "http",
            line: "http = [{ url = \"https://HOST/\" }]".to_owned(),
        });
    }
    missing
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
