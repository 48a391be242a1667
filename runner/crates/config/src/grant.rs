//! `grant` of a plugin: what it may do.

use super::http::HttpGrant;

/// How much of the Nix store a plugin may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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

/// What a plugin may do. The default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
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
