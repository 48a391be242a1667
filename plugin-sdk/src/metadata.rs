//! The metadata section of a plugin: its identity, hooks, wanted capabilities and order of tasks.
//! Written at compile time, read by the host without running the plugin.

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

/// How much a plugin wants a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// The plugin does not use it; calls are refused.
    No,
    /// The plugin also works without it.
    Optional,
    /// The plugin does not load without a grant.
    Required,
}

/// What a plugin wants. Start from [`Wants::NOTHING`].
///
/// ```
/// use hookrun_sdk::{Scope, Want, Wants};
///
/// const WANTS: Wants = Wants { nix_store: Scope::Closure, object_store: Want::Required, ..Wants::NOTHING };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// The least scope of [`nix_store`](crate::nix_store) it works with.
    pub nix_store: Scope,
    /// [`object_store`](crate::object_store).
    pub object_store: Want,
    /// [`signing`](crate::signing).
    pub signing: Want,
    /// [`mail`](crate::mail).
    pub mail: Want,
    /// [`state`](crate::state).
    pub state: Want,
    /// [`http`](crate::http), or any other client over `wasi:http`.
    pub http: Want,
}

impl Wants {
    /// A plugin that only logs and reads its configuration.
    pub const NOTHING: Self = Self {
        nix_store: Scope::None,
        object_store: Want::No,
        signing: Want::No,
        mail: Want::No,
        state: Want::No,
        http: Want::No,
    };
}

impl Default for Wants {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// In which order a plugin's tasks run, unless the configuration says otherwise (`order`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskOrder {
    /// In the order of events, several at once, failed ones later.
    #[default]
    Any,
    /// A task begins when the plugin's tasks for all that the event's outputs reach have ended: for
    /// a plugin whose service must know dependencies before what depends on them.
    DependenciesFirst,
}

/// Version of the section's format.
const FORMAT: &str = "1";

/// The content of the section. Used by [`plugin!`](crate::plugin!) only.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Metadata {
    pub name: &'static str,
    pub version: &'static str,
    pub description: &'static str,
    pub hooks: &'static [&'static str],
    pub wants: Wants,
    pub order: TaskOrder,
    /// A JSON schema, or empty.
    pub config_schema: &'static str,
}

impl Metadata {
    /// Bytes of the JSON form.
    pub const fn json_length(&self) -> usize {
        self.write(Writer::<0> { bytes: [], length: 0 }).length
    }

    /// The JSON form; `N` is [`Metadata::json_length`].
    pub const fn json<const N: usize>(&self) -> [u8; N] {
        self.write(Writer::<N> { bytes: [0; N], length: 0 }).bytes
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
        let Wants { nix_store, object_store, signing, mail, state, http } = self.wants;
        let scope = match nix_store {
            Scope::None => "none",
            Scope::Outputs => "outputs",
            Scope::Closure => "closure",
        };
        let out = out.raw("],\"wants\":{\"nix-store\":").string(scope);
        let out =
            out.raw(",\"object-store\":").want(object_store).raw(",\"signing\":").want(signing);
        let out = out.raw(",\"mail\":").want(mail).raw(",\"state\":").want(state);
        let out = out.raw(",\"http\":").want(http).raw("}");
        let out = out.raw(",\"order\":").string(match self.order {
            TaskOrder::Any => "any",
            TaskOrder::DependenciesFirst => "dependencies-first",
        });
        let schema = if self.config_schema.is_empty() { "null" } else { self.config_schema };
        out.raw(",\"config-schema\":").raw(schema).raw("}")
    }
}

/// Writes what fits into `N` bytes and counts all of it.
struct Writer<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Writer<N> {
    #[expect(clippy::indexing_slicing, reason = "compared with N just before")]
    const fn byte(mut self, byte: u8) -> Self {
        if self.length < N {
            self.bytes[self.length] = byte;
        }
        self.length += 1;
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

    /// A JSON string, RFC 8259 section 7.
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

    const fn want(self, want: Want) -> Self {
        self.string(match want {
            Want::No => "no",
            Want::Optional => "optional",
            Want::Required => "required",
        })
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
        let value: serde_json::Value = serde_json::from_slice(&JSON).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "format": 1, "name": "a \"quoted\"\n name", "version": "1.2.3", "description": "ünï",
                "hooks": ["post-build", "diff"],
                "wants": {"nix-store": "closure", "object-store": "no", "signing": "no", "mail": "no", "state": "optional", "http": "no"},
                "order": "dependencies-first",
                "config-schema": {"type": "object"},
            })
        );
    }
}
