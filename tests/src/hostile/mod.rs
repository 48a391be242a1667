//! The hostile corpus: guests that attack their host, each with its expected outcome.
//!
//! [`corpus`] is the table. A guest is the crate `tests/guests/hostile` with a configuration that
//! selects an act, a component made by hand ([`made`]), or bytes that are not a component.
//! `tests/tests/integration/hostile.rs` runs all of them in the built program, together with
//! well-behaved plugins.
//!
//! To add a guest, add a row to a file of this directory, an act to
//! `tests/guests/hostile/src/acts.rs` if it needs one, and the snapshot of its message.

mod calls;
mod files;
mod http;
pub mod made;
mod reach;
mod resources;
mod shapes;

use std::path::{Path, PathBuf};

use toml::{Table, Value, toml};

use crate::guests::guest;
use crate::lab::PluginTable;

/// The hook that a guest serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestHook {
    /// Called after a build.
    PostBuild,
    /// Called after two builds that differ.
    Diff,
    /// Asked where to build.
    BuilderSelection,
}

impl GuestHook {
    /// Returns its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PostBuild => "post-build",
            Self::Diff => "diff",
            Self::BuilderSelection => "builder-selection",
        }
    }
}

/// The component of a guest.
#[derive(Debug, Clone, Copy)]
pub enum Guest {
    /// The crate `tests/guests/hostile`.
    Crate,
    /// The same with another constructor.
    Constructor(u8),
    /// These bytes.
    Bytes(fn() -> Vec<u8>),
}

/// Grants to a hostile guest.
fn granted(table: PluginTable) -> PluginTable {
    table
        .grant("nix-store", "outputs")
        .grant("object-store", ["own", "tarpit"])
        .grant("signing", ["own-1"])
        .grant("mail", ["default"])
        .grant("state", true)
        .grant_http("http://granted.example.org/v1/", Table::new())
        .grant_http("http://localhost:9/", Table::new())
}

/// One row of the corpus.
#[derive(Debug, Clone)]
pub struct Row {
    /// The plugin's name in the configuration.
    pub name: String,
    /// The hook that the plugin serves.
    pub hook: GuestHook,
    /// The component.
    pub guest: Guest,
    /// Its `config` table.
    pub config: Table,
    /// Its `limits` table.
    pub limits: Table,
    /// Its `retry` table.
    pub retry: Table,
    /// The class of its outcome.
    pub class: &'static str,
    /// A part of its message or of its log.
    pub says: &'static str,
}

/// Returns a row for the crate with this act.
fn act(name: &str, config: Table) -> Row {
    Row {
        name: name.to_owned(),
        hook: GuestHook::PostBuild,
        guest: Guest::Crate,
        config,
        limits: Table::new(),
        retry: toml! { attempts = 1 },
        class: "refused",
        says: "",
    }
}

/// Returns a row for bytes.
fn bytes(name: &str, guest: fn() -> Vec<u8>) -> Row {
    Row { guest: Guest::Bytes(guest), ..act(name, Table::new()) }
}

/// Returns the keys of both tables.
fn with(mut table: Table, more: Table) -> Table {
    table.extend(more);
    table
}

impl Row {
    fn hook(self, hook: GuestHook) -> Self {
        Self { hook, ..self }
    }

    fn config(self, config: Table) -> Self {
        Self { config, ..self }
    }

    fn limit(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.limits.insert(key.to_owned(), value.into());
        self
    }

    fn retry(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.retry.insert(key.to_owned(), value.into());
        self
    }

    fn ends(self, class: &'static str, says: &'static str) -> Self {
        Self { class, says, ..self }
    }

    /// Returns the path of the component, which is written into `directory` unless it is a guest of
    /// `tests/guests`.
    pub fn component(&self, directory: &Path) -> PathBuf {
        let shared = guest("hostile").unwrap();
        let content = match self.guest {
            Guest::Crate => return shared,
            Guest::Constructor(choice) => made::patched(&shared, choice),
            Guest::Bytes(bytes) => bytes(),
        };
        let path = directory.join(format!("{}.wasm", self.name));
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Returns the plugin's table for this file. It grants only the plugin's own services. A policy
    /// runs without files and network, so it gets no grants.
    pub fn table(&self, component: &Path) -> PluginTable {
        let table = PluginTable::file(component)
            .hooks([self.hook.as_str()])
            .config(self.config.clone())
            .set("limits", &self.limits)
            .set("retry", &self.retry);
        match self.hook {
            GuestHook::BuilderSelection => table.grant("state", false),
            GuestHook::PostBuild | GuestHook::Diff => granted(table),
        }
    }
}

/// Returns the corpus.
pub fn corpus() -> Vec<Row> {
    [resources::rows(), calls::rows(), reach::rows(), shapes::rows(), files::rows(), http::rows()]
        .concat()
}
