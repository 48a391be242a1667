//! The hostile corpus: guests that attack their host, each with the outcome that is expected of it.
//!
//! [`corpus`] is the one table. A guest is either the crate `tests/guests/hostile` with a
//! configuration that says what it does, or a component made by hand ([`made`]), or bytes that are
//! no component at all. `tests/tests/integration/hostile.rs` runs all of them beside well-behaved
//! neighbours, through the built program.
//!
//! To add one: a row in the file of its family here, an act in `tests/guests/hostile/src/acts.rs`
//! if it needs a new one, and the snapshot of its message.

mod calls;
mod files;
mod http;
pub mod made;
mod reach;
mod resources;
mod shapes;

use std::path::{Path, PathBuf};

use crate::guests::guest;

/// Which hook a guest is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// A build.
    PostBuild,
    /// Two builds that differ.
    Diff,
    /// A question where to build.
    BuilderSelection,
}

impl Hook {
    /// Its word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PostBuild => "post-build",
            Self::Diff => "diff",
            Self::BuilderSelection => "builder-selection",
        }
    }
}

/// Where a guest comes from.
#[derive(Debug, Clone, Copy)]
pub enum Guest {
    /// The crate `tests/guests/hostile`.
    Crate,
    /// The same with another constructor.
    Constructor(u8),
    /// These bytes.
    Bytes(fn() -> Vec<u8>),
}

/// What every hostile guest is granted: things of its own.
const GRANT: &str = r#"
grant.nix-store = "outputs"
grant.object-store = ["own", "tarpit"]
grant.signing = ["own-1"]
grant.mail = ["default"]
grant.state = true
grant.http = [{ url = "http://granted.example.org/v1/" }, { url = "http://localhost:9/" }]
"#;

/// A policy runs where there is neither a file nor a network, and is granted nothing here.
const POLICY_GRANT: &str = "grant.state = false\n";

/// One row of the corpus.
#[derive(Debug, Clone)]
pub struct Row {
    /// The plugin's name in the configuration.
    pub name: String,
    /// By which hook it is called.
    pub hook: Hook,
    /// What is run.
    pub guest: Guest,
    /// Its `config` table, inline.
    pub config: String,
    /// More lines of its table: limits, retries.
    pub more: String,
    /// The class of its outcome.
    pub class: &'static str,
    /// What its message, or a line of its log, has in it.
    pub says: &'static str,
}

/// A row for the crate with this act.
fn act(name: &str, config: &str) -> Row {
    Row {
        name: name.to_owned(),
        hook: Hook::PostBuild,
        guest: Guest::Crate,
        config: config.to_owned(),
        more: String::new(),
        class: "refused",
        says: "",
    }
}

/// A row for bytes.
fn bytes(name: &str, guest: fn() -> Vec<u8>) -> Row {
    Row { guest: Guest::Bytes(guest), ..act(name, "") }
}

impl Row {
    fn hook(self, hook: Hook) -> Self {
        Self { hook, ..self }
    }

    fn config(self, config: &str) -> Self {
        Self { config: config.to_owned(), ..self }
    }

    fn limits(self, limits: &str) -> Self {
        Self { more: format!("{}limits = {{ {limits} }}\n", self.more), ..self }
    }

    fn retry(self, retry: &str) -> Self {
        Self { more: format!("{}retry = {{ {retry} }}\n", self.more), ..self }
    }

    fn ends(self, class: &'static str, says: &'static str) -> Self {
        Self { class, says, ..self }
    }

    /// Writes the guest's file into `directory`, if it has one of its own, and gives its path.
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

    /// Its table in the configuration, with everything of its own granted; `component` is its file.
    pub fn table(&self, component: &Path) -> String {
        let Self { name, hook, config, more, .. } = self;
        let retry = if more.contains("retry") { "" } else { "retry = { attempts = 1 }\n" };
        let grant = if *hook == Hook::BuilderSelection { POLICY_GRANT } else { GRANT };
        format!(
            "[plugins.{name}]\nsource = \"{}\"\nhooks = [\"{}\"]\nconfig = {{ {config} }}\n{retry}{more}{grant}",
            component.display(),
            hook.as_str(),
        )
    }
}

/// The corpus.
pub fn corpus() -> Vec<Row> {
    [resources::rows(), calls::rows(), reach::rows(), shapes::rows(), files::rows(), http::rows()]
        .concat()
}
