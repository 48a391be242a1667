//! Capabilities: what a plugin's metadata wants ([`Wants`]) and what its `grant` in the
//! configuration allows ([`Grant`]). [`Capability`] is the table of both, with one row each.
//! Messages, `hookrun inspect`, `hookrun test` and `--deny` iterate over it.

use serde::{Deserialize, Serialize};

use super::http::HttpGrant;

/// Defines [`Capability`], [`Wants`] and [`Grant`] from the rows below.
macro_rules! capabilities {
    ($(
        $(#[$doc:meta])*
        $variant:ident {
            $field:ident: $key:literal, wants $wanted:ty, grants $granted:ty
            $(, of section $section:literal)?
            $(, for policies $policies:literal)?
        }
    )+) => {
        /// The capabilities that can be granted, in the order of the documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Capability {
            $($(#[$doc])* $variant,)+
        }

        /// The capabilities that a plugin wants: `wants` of its metadata.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Wants {
            $($(#[$doc])* pub $field: $wanted,)+
        }

        /// The capabilities that a plugin is granted. The default grants nothing.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Grant {
            $($(#[$doc])* pub $field: $granted,)+
        }

        impl Capability {
            pub const ALL: [Self; [$($key),+].len()] = [$(Self::$variant),+];

            /// Returns the key in `grant` and in a plugin's `wants`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $key,)+
                }
            }

            /// Returns the section that contains the granted tables.
            pub const fn section(self) -> Option<&'static str> {
                match self {
                    $($(Self::$variant => Some($section),)?)+
                    _ => None,
                }
            }

            /// Returns whether a policy of builder selection may have it. Nix is blocked while a
            /// policy runs, and its decision must depend only on its input.
            pub const fn is_for_policies(self) -> bool {
                match self {
                    $($(Self::$variant => $policies,)?)+
                    _ => false,
                }
            }

            /// Returns what `grant` allows of it: names, a scope, URLs or `yes`; empty if nothing.
            pub fn granted(self, grant: &Grant) -> Vec<String> {
                match self {
                    $(Self::$variant => grant.$field.shown(),)+
                }
            }

            /// Returns whether `grant` covers what `wants` requires of it.
            pub fn is_covered(self, grant: &Grant, wants: &Wants) -> bool {
                match self {
                    $(Self::$variant => grant.$field.covers(wants.$field),)+
                }
            }

            /// Removes from `grant` what `wants` does not ask for.
            pub fn restrict(self, grant: &mut Grant, wants: &Wants) {
                match self {
                    $(Self::$variant => grant.$field.restrict(wants.$field),)+
                }
            }

            /// Removes it from `grant`.
            pub fn revoke(self, grant: &mut Grant) {
                self.restrict(grant, &Wants::default());
            }

            /// Adds it to `grant` as far as `wants` asks for it: everything, or the table `name`.
            pub fn give(self, grant: &mut Grant, wants: &Wants, name: &str) {
                match self {
                    $(Self::$variant => grant.$field.give(wants.$field, name),)+
                }
            }

            /// Returns the line of a grant that covers `wants`, with an example of a name.
            pub fn line(self, wants: &Wants, name: &str) -> String {
                match self {
                    $(Self::$variant => {
                        format!("{} = {}", $key, <$granted>::example(wants.$field, name))
                    })+
                }
            }
        }

        impl Wants {
            /// Returns how much `capability` is wanted.
            pub fn of(&self, capability: Capability) -> Want {
                match capability {
                    $(Capability::$variant => self.$field.into(),)+
                }
            }

            /// Returns the part of it that a policy of builder selection may have.
            #[must_use]
            pub fn of_policy(&self) -> Self {
                let mut wants = Self::default();
                $(if Capability::$variant.is_for_policies() {
                    wants.$field = self.$field;
                })+
                wants
            }
        }
    };
}

capabilities! {
    /// Reading paths of the Nix store.
    NixStore { nix_store: "nix-store", wants StoreScope, grants StoreScope }
    /// Reading and writing object stores.
    ObjectStore {
        object_store: "object-store", wants Want, grants Vec<String>, of section "object-stores"
    }
    /// Signatures with keys that the plugin does not see.
    Signing { signing: "signing", wants Want, grants Vec<String>, of section "signing-keys" }
    /// Sending mail.
    Mail { mail: "mail", wants Want, grants Vec<String>, of section "mail" }
    /// A durable key-value store of the plugin's own.
    State { state: "state", wants Want, grants bool, for policies true }
    /// Sending HTTP requests through `wasi:http`.
    Http { http: "http", wants Want, grants Vec<HttpGrant> }
}

/// How much of a capability is granted: the type of a key of [`Grant`].
trait Granted: Default {
    /// The type of the corresponding key of [`Wants`].
    type Wanted: Copy + Into<Want>;

    /// Returns the granted values as words; empty if nothing is granted.
    fn shown(&self) -> Vec<String>;

    /// Grants as much as is wanted, or the table `name`.
    fn give(&mut self, wanted: Self::Wanted, name: &str);

    /// Returns the value to write in a grant, in TOML.
    fn example(wanted: Self::Wanted, name: &str) -> String;

    /// Returns whether the grant covers what is wanted.
    fn covers(&self, wanted: Self::Wanted) -> bool {
        wanted.into() != Want::Required || !self.shown().is_empty()
    }

    /// Removes what is not wanted.
    fn restrict(&mut self, wanted: Self::Wanted) {
        if wanted.into() == Want::No {
            *self = Self::default();
        }
    }
}

/// A capability that is granted or not.
impl Granted for bool {
    type Wanted = Want;

    fn shown(&self) -> Vec<String> {
        self.then(|| "yes".to_owned()).into_iter().collect()
    }

    fn give(&mut self, _wanted: Want, _name: &str) {
        *self = true;
    }

    fn example(_wanted: Want, _name: &str) -> String {
        "true".to_owned()
    }
}

/// Names of tables of the configuration.
impl Granted for Vec<String> {
    type Wanted = Want;

    fn shown(&self) -> Vec<String> {
        self.clone()
    }

    fn give(&mut self, _wanted: Want, name: &str) {
        self.push(name.to_owned());
    }

    fn example(_wanted: Want, name: &str) -> String {
        format!("[\"{name}\"]")
    }
}

impl Granted for Vec<HttpGrant> {
    type Wanted = Want;

    fn shown(&self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }

    fn give(&mut self, _wanted: Want, _name: &str) {
        self.push(HttpGrant::everything());
    }

    fn example(_wanted: Want, _name: &str) -> String {
        "[{ url = \"https://HOST/\" }]".to_owned()
    }
}

impl Granted for StoreScope {
    type Wanted = Self;

    fn shown(&self) -> Vec<String> {
        let granted = (*self != Self::None).then(|| self.as_str().to_owned());
        granted.into_iter().collect()
    }

    fn give(&mut self, wanted: Self, _name: &str) {
        *self = wanted;
    }

    fn example(wanted: Self, _name: &str) -> String {
        format!("\"{}\"", wanted.as_str())
    }

    fn covers(&self, wanted: Self) -> bool {
        *self >= wanted
    }

    fn restrict(&mut self, wanted: Self) {
        *self = wanted.min(*self);
    }
}

/// A scope that is wanted is always required.
impl From<StoreScope> for Want {
    fn from(scope: StoreScope) -> Self {
        if scope == StoreScope::None { Self::No } else { Self::Required }
    }
}

/// How strongly a plugin wants a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// The plugin does not want it. Calls are refused even if it is granted.
    #[default]
    No,
    /// The plugin works without it.
    Optional,
    /// The plugin does not load without it.
    Required,
}

impl Want {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

impl Wants {
    /// Returns the required capabilities that no policy of builder selection gets.
    pub fn required_beyond_policy(&self) -> impl Iterator<Item = Capability> {
        let required = |capability: &Capability| self.of(*capability) == Want::Required;
        Capability::ALL.into_iter().filter(required).filter(|it| !it.is_for_policies())
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
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Outputs => "outputs",
            Self::Closure => "closure",
        }
    }
}

impl Grant {
    /// Returns the granted capabilities that a policy of builder selection may not have.
    pub fn beyond_policy(&self) -> Vec<Capability> {
        let beyond = |it: &Capability| !it.is_for_policies() && !it.granted(self).is_empty();
        Capability::ALL.into_iter().filter(beyond).collect()
    }

    /// Returns each key that names tables of the configuration, with the section of these tables
    /// and their names.
    pub fn names(&self) -> impl Iterator<Item = (&'static str, &'static str, Vec<String>)> {
        let named = |it: Capability| Some((it.name(), it.section()?, it.granted(self)));
        let credentials = self.http.iter().filter_map(|grant| grant.credential.clone());
        let credentials = ("http", "http-credentials", credentials.collect());
        Capability::ALL.into_iter().filter_map(named).chain([credentials])
    }
}
