//! The metadata section of a plugin: identity, hooks, wanted capabilities, and order of tasks. It
//! is written at compile time, and the host reads it without running the plugin.

use crate::Wants;

/// How much of the Nix store a plugin wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing.
    None,
    /// The event's derivation and outputs.
    Outputs,
    /// The closure of those outputs.
    Closure,
}

impl Scope {
    pub(crate) const NOTHING: Self = Self::None;
    pub(crate) const LEAST: Self = Self::Outputs;

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Outputs => "outputs",
            Self::Closure => "closure",
        }
    }
}

/// How much a plugin wants a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The plugin does not use it; calls are refused.
    No,
    /// The plugin uses it, and also works without a grant.
    Optional,
    /// The plugin needs it, and does not load without a grant.
    Required,
}

impl Want {
    pub(crate) const NOTHING: Self = Self::No;
    pub(crate) const LEAST: Self = Self::Optional;

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// Defines [`Wants`] from one row for each capability.
macro_rules! wants {
    ($($(#[$doc:meta])* $field:ident: $wanted:ident = $key:literal,)+) => {
        /// What a plugin wants. Start from [`Wants::NOTHING`].
        ///
        /// ```
        /// use hookrun_sdk::{Scope, Want, Wants};
        ///
        /// const WANTS: Wants =
        ///     Wants { nix_store: Scope::Closure, object_store: Want::Required, ..Wants::NOTHING };
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Wants {
            $($(#[$doc])* pub $field: $wanted,)+
        }

        impl Wants {
            /// A plugin that only logs and reads its configuration.
            pub const NOTHING: Self = Self { $($field: $wanted::NOTHING,)+ };

            /// A plugin that uses all that it is granted, for tests of hookrun.
            #[doc(hidden)]
            pub const EVERYTHING: Self = Self { $($field: $wanted::LEAST,)+ };

            /// Writes the members of the JSON object.
            pub(crate) const fn write<const N: usize>(
                self,
                out: metadata::Writer<N>,
            ) -> metadata::Writer<N> {
                $(let out = out.member($key, self.$field.word());)+
                out
            }
        }

        impl Default for Wants {
            fn default() -> Self {
                Self::NOTHING
            }
        }
    };
}
pub(crate) use wants;

/// The order in which a plugin's tasks run, unless `order` in the configuration overrides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskOrder {
    /// In the order of events, several at once. Failed tasks run again later.
    #[default]
    Any,
    /// A task starts when the plugin's tasks for all dependencies of the event's outputs have
    /// ended. Use this for a service that must know dependencies before the paths that refer to
    /// them.
    DependenciesFirst,
}

/// The version of the section's format.
const FORMAT: &str = "1";

/// The contents of the section. Only [`plugin!`](crate::plugin!) uses this type.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Metadata {
    pub name: &'static str,
    pub version: &'static str,
    pub description: &'static str,
    pub hooks: &'static [&'static str],
    pub wants: Wants,
    pub order: TaskOrder,
    /// A JSON schema, or an empty string.
    pub config_schema: &'static str,
}

impl Metadata {
    /// Returns the number of bytes of the JSON text.
    pub const fn json_length(&self) -> usize {
        self.write(Writer::<0> { bytes: [], length: 0, last: 0 }).length
    }

    /// Returns the JSON text; `N` must be [`Metadata::json_length`].
    pub const fn json<const N: usize>(&self) -> [u8; N] {
        self.write(Writer::<N> { bytes: [0; N], length: 0, last: 0 }).bytes
    }

    const fn write<const N: usize>(&self, out: Writer<N>) -> Writer<N> {
        let out = out.raw("{\"format\":").raw(FORMAT);
        let out = out.raw(",\"name\":").string(self.name);
        let out = out.raw(",\"version\":").string(self.version);
        let out = out.raw(",\"description\":").string(self.description);
        let mut out = out.raw(",\"hooks\":[");
        let (mut hooks, mut first) = (self.hooks, true);
        while let [hook, rest @ ..] = hooks {
            if !first {
                out = out.raw(",");
            }
            out = out.string(hook);
            first = false;
            hooks = rest;
        }
        let out = self.wants.write(out.raw("],\"wants\":{")).raw("}");
        let out = out.raw(",\"order\":").string(match self.order {
            TaskOrder::Any => "any",
            TaskOrder::DependenciesFirst => "dependencies-first",
        });
        let schema = if self.config_schema.is_empty() { "null" } else { self.config_schema };
        out.raw(",\"config-schema\":").raw(schema).raw("}")
    }
}

/// Writes what fits into `N` bytes and counts all of it.
#[derive(Debug)]
pub(crate) struct Writer<const N: usize> {
    bytes: [u8; N],
    length: usize,
    last: u8,
}

impl<const N: usize> Writer<N> {
    #[expect(clippy::indexing_slicing, reason = "compared with N just before")]
    const fn byte(mut self, byte: u8) -> Self {
        if self.length < N {
            self.bytes[self.length] = byte;
        }
        self.length += 1;
        self.last = byte;
        self
    }

    const fn raw(mut self, text: &str) -> Self {
        let mut rest = text.as_bytes();
        while let [byte, tail @ ..] = rest {
            self = self.byte(*byte);
            rest = tail;
        }
        self
    }

    /// Writes a JSON string (RFC 8259 section 7).
    const fn string(mut self, text: &str) -> Self {
        self = self.byte(b'"');
        let mut rest = text.as_bytes();
        while let [byte, tail @ ..] = rest {
            self = match *byte {
                b'"' | b'\\' => self.byte(b'\\').byte(*byte),
                0..=0x1f => self.raw("\\u00").byte(b'0' + (*byte >> 4)).byte(hex(*byte & 0xf)),
                _ => self.byte(*byte),
            };
            rest = tail;
        }
        self.byte(b'"')
    }

    /// A member of an object whose value is a string.
    pub(crate) const fn member(self, key: &str, value: &str) -> Self {
        let out = if self.last == b'{' { self } else { self.byte(b',') };
        out.string(key).byte(b':').string(value)
    }
}

const fn hex(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_json() {
        const METADATA: Metadata = Metadata {
            name: "a \"quoted\"\n name",
            version: "1.2.3",
            description: "ünï",
            hooks: &["post-build", "diff"],
            wants: Wants { nix_store: Scope::Closure, state: Want::Optional, ..Wants::NOTHING },
            order: TaskOrder::DependenciesFirst,
            config_schema: "{\"type\": \"object\"}",
        };
        const JSON: [u8; METADATA.json_length()] = METADATA.json();
        let mut value: serde_json::Value = serde_json::from_slice(&JSON).unwrap();
        let wants = value["wants"].as_object_mut().unwrap();
        assert_eq!(wants.remove("nix-store"), Some("closure".into()));
        assert_eq!(wants.remove("state"), Some("optional".into()));
        assert!(wants.values().all(|want| want == "no"), "{wants:?}");
        wants.clear();
        assert_eq!(
            value,
            serde_json::json!({
                "format": 1, "name": "a \"quoted\"\n name", "version": "1.2.3", "description": "ünï",
                "hooks": ["post-build", "diff"],
                "wants": {},
                "order": "dependencies-first",
                "config-schema": {"type": "object"},
            })
        );
    }
}
