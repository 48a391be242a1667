//! `hookrun.toml` as a value. Tests name tables and keys, and the `toml` crate writes the text, so
//! that no test escapes a path or a quotation mark.
//!
//! ```
//! use hookrun_tests::lab::{ConfigFile, PluginTable, toml};
//!
//! let file = ConfigFile::new()
//!     .worker("idle-exit", "1s")
//!     .plugin(
//!         "report",
//!         PluginTable::bundled("email-on-nondeterminism")
//!             .hooks(["diff"])
//!             .config(toml! { to = ["ann@example.org"] })
//!             .grant("mail", ["default"])
//!             .limit("wall-time", "2s"),
//!     )
//!     .mail("default", toml! { transport = "maildir" });
//! assert!(file.to_string().contains(r#"start = "none""#));
//! ```
//!
//! Relative paths in a configuration are relative to its file. In a scene they are relative to the
//! scene's directory.

use std::fmt;
use std::path::Path;

use serde::Serialize;
pub use toml::toml;
use toml::{Table, Value};

use crate::guests;

/// The text of a `hookrun.toml`. [`fmt::Display`] writes it.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile(Table);

/// The table `[plugins.NAME]` of one plugin.
#[derive(Debug, Clone)]
pub struct PluginTable(Table);

impl ConfigFile {
    /// A file in which only `start = "none"` is set: no hook starts a worker.
    pub fn new() -> Self {
        Self::default().worker("start", "none")
    }

    /// Sets a key of `[worker]`.
    pub fn worker(self, key: &str, value: impl Serialize) -> Self {
        self.set("worker", key, value)
    }

    /// Sets a key of `[builders]`.
    pub fn builders(self, key: &str, value: impl Serialize) -> Self {
        self.set("builders", key, value)
    }

    /// Writes the table of a plugin, in the place of an earlier one with this name.
    pub fn plugin(self, name: &str, table: PluginTable) -> Self {
        self.set("plugins", name, table.0)
    }

    /// Writes `[object-stores.NAME]`. An empty table is a directory below the state directory.
    pub fn object_store(self, name: &str, table: Table) -> Self {
        self.set("object-stores", name, table)
    }

    /// Writes `[signing-keys."NAME"]` with this file.
    pub fn signing_key(self, name: &str, file: impl AsRef<Path>) -> Self {
        self.set("signing-keys", name, with(Table::new(), "file", file.as_ref()))
    }

    /// Writes the mail transport `[mail.NAME]`. An empty table is a maildir below the state
    /// directory.
    pub fn mail(self, name: &str, table: Table) -> Self {
        self.set("mail", name, table)
    }

    /// Writes `[http-credentials.NAME]`.
    pub fn http_credential(self, name: &str, table: Table) -> Self {
        self.set("http-credentials", name, table)
    }

    /// Adds the tables of another file. If both have a key, the value of the other file is used.
    pub fn and(mut self, other: impl Into<Self>) -> Self {
        merge(&mut self.0, other.into().0);
        self
    }

    fn set(mut self, table: &str, key: &str, value: impl Serialize) -> Self {
        set_in(&mut self.0, table, key, value);
        self
    }
}

impl PluginTable {
    /// A plugin that is part of hookrun.
    pub fn bundled(name: &str) -> Self {
        Self::file(format!("bundled:{name}"))
    }

    /// The plugin `s3-upload` with the grants that it needs to upload to the object store `cache`
    /// with signatures of this key.
    pub fn uploader(signing_key: &str) -> Self {
        Self::bundled("s3-upload")
            .hooks(["post-build"])
            .config(toml! { bucket = "cache" })
            .grant("nix-store", "closure")
            .grant("object-store", ["cache"])
            .grant("signing", [signing_key])
    }

    /// The plugin `email-on-nondeterminism` with this mail transport and this recipient.
    pub fn mailer(transport: &str, to: &str) -> Self {
        Self::bundled("email-on-nondeterminism")
            .hooks(["diff"])
            .config(toml! { to = [to] transport = transport })
            .grant("mail", [transport])
            .grant("state", true)
    }

    /// The policy `speed-factor`.
    pub fn speed_factor() -> Self {
        Self::bundled("speed-factor").hooks(["builder-selection"])
    }

    /// A guest of `tests/guests`.
    pub fn guest(name: &str) -> Self {
        Self::file(guests::guest(name).unwrap())
    }

    /// A guest of `tests/guests` at a path that every user of the machine can read.
    pub fn guest_for_all(name: &str) -> Self {
        Self::file(guests::guest_for_all(name).unwrap())
    }

    /// The guest `good`, which counts builds in its state.
    pub fn keeper() -> Self {
        Self::guest_for_all("good").hooks(["post-build"]).grant("state", true)
    }

    /// A component in this file.
    pub fn file(source: impl AsRef<Path>) -> Self {
        Self(with(Table::new(), "source", source.as_ref()))
    }

    /// Sets any key of the table.
    pub fn set(self, key: &str, value: impl Serialize) -> Self {
        Self(with(self.0, key, value))
    }

    /// Sets the hooks that the plugin serves.
    pub fn hooks<const COUNT: usize>(self, hooks: [&str; COUNT]) -> Self {
        self.set("hooks", hooks.as_slice())
    }

    /// Sets keys of the configuration that the plugin itself reads.
    pub fn config(mut self, keys: Table) -> Self {
        table_in(&mut self.0, "config").extend(keys);
        self
    }

    /// Sets a key of `retry`, such as `attempts`.
    pub fn retry(mut self, key: &str, value: impl Serialize) -> Self {
        set_in(&mut self.0, "retry", key, value);
        self
    }

    /// Sets three attempts, one hour apart.
    pub fn retry_hourly(self) -> Self {
        self.retry("attempts", 3).retry("min-delay", "1h").retry("max-delay", "1h")
    }

    /// Grants a capability.
    pub fn grant(mut self, capability: &str, scope: impl Serialize) -> Self {
        set_in(&mut self.0, "grant", capability, scope);
        self
    }

    /// Adds an entry to the grant `http`: a URL and the other keys of its table.
    pub fn grant_http(mut self, url: &str, more: Table) -> Self {
        let grant = table_in(&mut self.0, "grant");
        let list = grant.entry("http").or_insert_with(|| Value::Array(Vec::new()));
        let entry = Value::Table(with(more, "url", url));
        list.as_array_mut().unwrap().push(entry);
        self
    }

    /// Sets a limit.
    pub fn limit(mut self, key: &str, value: impl Serialize) -> Self {
        set_in(&mut self.0, "limits", key, value);
        self
    }
}

impl fmt::Display for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

/// Creates a file with one plugin, named `x`. Unlike [`ConfigFile::new`], it does not set `start`.
impl From<PluginTable> for ConfigFile {
    fn from(table: PluginTable) -> Self {
        Self::default().plugin("x", table)
    }
}

impl From<Table> for ConfigFile {
    fn from(table: Table) -> Self {
        Self(table)
    }
}

fn with(mut table: Table, key: &str, value: impl Serialize) -> Table {
    table.insert(key.to_owned(), Value::try_from(value).unwrap());
    table
}

/// Returns the table `key`, and creates it if it is missing.
fn table_in<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    let value = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
    value.as_table_mut().unwrap()
}

fn set_in(table: &mut Table, inner: &str, key: &str, value: impl Serialize) {
    table_in(table, inner).insert(key.to_owned(), Value::try_from(value).unwrap());
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(own)), Value::Table(other)) => merge(own, other),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hookrun_config::Config;

    use super::*;

    #[test]
    fn paths_and_texts_with_quotation_marks_are_read_back_as_they_were() {
        let path = r#"/tmp/a "quoted" path\with backslashes"#;
        let file = ConfigFile::new()
            .plugin("x", PluginTable::file(path).grant_http("https://h/", Table::new()))
            .signing_key("cache.example.org-1", path);
        let config = Config::parse(Path::new("/hookrun.toml"), &file.to_string()).unwrap();
        assert_eq!(config.signing_keys["cache.example.org-1"].file, Path::new(path));
        assert_eq!(config.plugins["x"].grant.http.len(), 1);
    }

    #[test]
    fn a_file_that_is_added_changes_single_keys() {
        let file = ConfigFile::new().worker("priority", "idle");
        let file = file.and(toml! { worker.start = "spawn" });
        assert_eq!(file.0, toml! { worker = { start = "spawn", priority = "idle" } });
    }
}
