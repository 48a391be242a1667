//! Capabilities: what a plugin's metadata wants ([`Wants`]) and what its `grant` in the
//! configuration gives ([`Grant`]). [`Capability`] is the table of both: messages, `hookrun
//! inspect`, `hookrun test` and `--deny` walk it.

use serde::{Deserialize, Serialize};

use super::http::HttpGrant;

/// What a plugin may be granted, in the order of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// `nix-store`: reading store paths.
    NixStore,
    /// `object-store`: reading and writing object stores.
    ObjectStore,
    /// `signing`: signatures with keys that the plugin does not see.
    Signing,
    /// `mail`: sending mail.
    Mail,
    /// `state`: a durable key-value store.
    State,
    /// `http`: sending HTTP requests through `wasi:http`.
    Http,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NixStore, Self::ObjectStore, Self::Signing, Self::Mail, Self::State, Self::Http];

    /// The key in `grant` and in a plugin's `wants`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NixStore => "nix-store",
            Self::ObjectStore => "object-store",
            Self::Signing => "signing",
            Self::Mail => "mail",
            Self::State => "state",
            Self::Http => "http",
        }
    }

    /// The section of the tables whose names are granted.
    pub const fn section(self) -> Option<&'static str> {
        match self {
            Self::ObjectStore => Some("object-stores"),
            Self::Signing => Some("signing-keys"),
            Self::Mail => Some("mail"),
            Self::NixStore | Self::State | Self::Http => None,
        }
    }

    /// Whether a policy of builder selection may have it. Nix is blocked while a policy runs, and
    /// its decision has to follow from its input.
    pub const fn is_for_policies(self) -> bool {
        matches!(self, Self::State)
    }

    /// What `grant` gives of it: names, a scope, URLs or `yes`; empty if nothing.
    pub fn granted(self, grant: &Grant) -> Vec<String> {
        match self {
            Self::NixStore if grant.nix_store == StoreScope::None => Vec::new(),
            Self::NixStore => vec![grant.nix_store.as_str().to_owned()],
            Self::ObjectStore => grant.object_store.clone(),
            Self::Signing => grant.signing.clone(),
            Self::Mail => grant.mail.clone(),
            Self::State if grant.state => vec!["yes".to_owned()],
            Self::State => Vec::new(),
            Self::Http => grant.http.iter().map(ToString::to_string).collect(),
        }
    }

    /// Removes it from `grant`.
    pub fn revoke(self, grant: &mut Grant) {
        match self {
            Self::NixStore => grant.nix_store = StoreScope::None,
            Self::ObjectStore => grant.object_store.clear(),
            Self::Signing => grant.signing.clear(),
            Self::Mail => grant.mail.clear(),
            Self::State => grant.state = false,
            Self::Http => grant.http.clear(),
        }
    }

    /// Adds it to `grant`, as much as `wants` asks for: everything, or the table `name`.
    pub fn give(self, grant: &mut Grant, wants: &Wants, name: &str) {
        match self {
            Self::NixStore => grant.nix_store = wants.nix_store,
            Self::ObjectStore => grant.object_store.push(name.to_owned()),
            Self::Signing => grant.signing.push(name.to_owned()),
            Self::Mail => grant.mail.push(name.to_owned()),
            Self::State => grant.state = true,
            Self::Http => grant.http.push(HttpGrant::everything()),
        }
    }

    /// The line of a grant that gives `wants` what it asks for, with an example of a name.
    pub fn line(self, wants: &Wants, name: &str) -> String {
        let key = self.name();
        match self {
            Self::NixStore => format!("{key} = \"{}\"", wants.nix_store.as_str()),
            Self::ObjectStore | Self::Signing | Self::Mail => format!("{key} = [\"{name}\"]"),
            Self::State => format!("{key} = true"),
            Self::Http => format!("{key} = [{{ url = \"https://HOST/\" }}]"),
        }
    }
}

/// How much a plugin wants a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// Not at all; calls are refused even if it is granted.
    #[default]
    No,
    /// The plugin works without it.
    Optional,
    /// The plugin does not load without it.
    Required,
}

impl Want {
    /// The word in metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// What a plugin wants: `wants` of its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Wants {
    /// The least scope it works with.
    pub nix_store: StoreScope,
    /// Object stores.
    pub object_store: Want,
    /// Signing keys.
    pub signing: Want,
    /// Mail transports.
    pub mail: Want,
    /// A durable key-value store.
    pub state: Want,
    /// HTTP requests (`wasi:http`).
    pub http: Want,
}

impl Wants {
    /// How much `capability` is wanted. A scope of the Nix store is required.
    pub fn of(&self, capability: Capability) -> Want {
        match capability {
            Capability::NixStore if self.nix_store == StoreScope::None => Want::No,
            Capability::NixStore => Want::Required,
            Capability::ObjectStore => self.object_store,
            Capability::Signing => self.signing,
            Capability::Mail => self.mail,
            Capability::State => self.state,
            Capability::Http => self.http,
        }
    }

    /// The capabilities that are required, and that no policy of builder selection gets.
    pub fn required_beyond_policy(&self) -> impl Iterator<Item = Capability> {
        let required = |capability: &Capability| self.of(*capability) == Want::Required;
        Capability::ALL.into_iter().filter(required).filter(|it| !it.is_for_policies())
    }

    /// What is left of it for a policy of builder selection.
    #[must_use]
    pub fn of_policy(&self) -> Self {
        Self { state: self.state, ..Self::default() }
    }
}

/// How much of the Nix store a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreScope {
    /// Nothing.
    #[default]
    None,
    /// The event's derivation and outputs.
    Outputs,
    /// Their closure.
    Closure,
}

impl StoreScope {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Outputs => "outputs",
            Self::Closure => "closure",
        }
    }
}

/// What a plugin may do. The default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Grant {
    /// The scope of the Nix store.
    pub nix_store: StoreScope,
    /// Names of `[object-stores]`.
    pub object_store: Vec<String>,
    /// Names of `[signing-keys]`.
    pub signing: Vec<String>,
    /// Names of `[mail]` transports.
    pub mail: Vec<String>,
    /// Whether it has a durable key-value store of its own.
    pub state: bool,
    /// URLs that it may send HTTP requests to.
    pub http: Vec<HttpGrant>,
}

impl Grant {
    /// Returns the granted capabilities that a policy of builder selection may not have.
    pub fn beyond_policy(&self) -> Vec<Capability> {
        let beyond = |it: &Capability| !it.is_for_policies() && !it.granted(self).is_empty();
        Capability::ALL.into_iter().filter(beyond).collect()
    }

    /// Returns each key that names tables of the configuration, with the section of these tables
    /// and the names.
    pub fn names(&self) -> [(&'static str, &'static str, Vec<&str>); 4] {
        fn all(names: &[String]) -> Vec<&str> {
            names.iter().map(String::as_str).collect()
        }
        let credentials = self.http.iter().filter_map(|grant| grant.credential.as_deref());
        [
            ("object-store", "object-stores", all(&self.object_store)),
            ("signing", "signing-keys", all(&self.signing)),
            ("mail", "mail", all(&self.mail)),
            ("http", "http-credentials", credentials.collect()),
        ]
    }
}
