//! The `state` interface: a small durable key-value store for each plugin.
//!
//! A run works on a copy. It reads the whole store at its first call (the store is small,
//! [`Limit::StateBytes`]), sees its own writes at once, and [`Transaction::commit`] writes them to
//! the store in one SQLite transaction when the run returns. If a run traps or reaches a limit, its
//! copy is dropped. If two runs of one plugin write the same key, the last one to return wins. A
//! run never changes keys that it did not write.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind as Io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::{CapabilityError, PluginContext, SandboxNeeds, Service};
use hookrun_config::{Config, Grant, Limit};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::sqlite::{self, MigrationError};

/// How long a commit waits for another process's commit. Both take much less than a millisecond.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys and values of one plugin.
pub type Pairs = BTreeMap<String, Vec<u8>>;

/// Keys with their new values, or `None` for removed keys.
type Changes = Vec<(String, Option<Vec<u8>>)>;

/// The stores of all plugins of an installation.
#[derive(Debug)]
pub struct Stores(StateBackend);

#[derive(Debug, Clone)]
enum StateBackend {
    /// One SQLite file for each plugin in this directory.
    Directory(PathBuf),
    /// In memory, for `hookrun test`.
    Memory(Arc<Mutex<BTreeMap<String, Pairs>>>),
}

impl Service for Stores {
    fn configure(_config: &Config, dirs: &Dirs) -> Self {
        Self::durable(dirs.plugin_state())
    }

    fn in_memory(_config: &Config, _dirs: &Dirs) -> Self {
        Self::in_memory()
    }

    fn sandbox_needs(&self, grant: &Grant, dirs: &Dirs) -> SandboxNeeds {
        if grant.state {
            SandboxNeeds::directory(&dirs.plugin_state())
        } else {
            SandboxNeeds::default()
        }
    }
}

impl Stores {
    /// Creates stores in `directory`, which the first write creates with mode 0700.
    pub fn durable(directory: PathBuf) -> Self {
        Self(StateBackend::Directory(directory))
    }

    /// Creates stores that live as long as this value.
    pub fn in_memory() -> Self {
        Self(StateBackend::Memory(Arc::default()))
    }

    /// Returns all pairs of `plugin`, for a process that cannot open its store.
    ///
    /// # Errors
    /// Returns `transient` if the store cannot be read.
    pub fn load(&self, plugin: &str) -> Result<Pairs, CapabilityError> {
        match &self.0 {
            StateBackend::Memory(stores) => {
                Ok(lock(stores).get(plugin).cloned().unwrap_or_default())
            }
            StateBackend::Directory(directory) => {
                read_file(&file(directory, plugin)).map_err(|error| unusable(plugin, &error))
            }
        }
    }

    /// Writes the changes of such a process from `before` to `after`.
    ///
    /// # Errors
    /// Returns `transient` if the store cannot be written.
    pub fn save(&self, plugin: &str, before: &Pairs, after: &Pairs) -> Result<(), CapabilityError> {
        let removed =
            before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), None));
        let set = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
        let set = set.map(|(key, value)| (key.clone(), Some(value.clone())));
        let changes: Changes = removed.chain(set).collect();
        if changes.is_empty() {
            return Ok(());
        }
        match &self.0 {
            StateBackend::Memory(stores) => {
                change(&mut lock(stores), plugin, changes);
                Ok(())
            }
            StateBackend::Directory(directory) => make_directory(directory)
                .and_then(|()| write_file(&file(directory, plugin), &changes))
                .map_err(|error| unusable(plugin, &error)),
        }
    }

    /// Replaces the content of a store in memory for `plugin` by `pairs`.
    pub fn fill(&self, plugin: &str, pairs: Pairs) {
        if let StateBackend::Memory(stores) = &self.0 {
            lock(stores).insert(plugin.to_owned(), pairs);
        }
    }

    /// Begins a run of `plugin`. Reads nothing yet.
    pub fn begin(&self, plugin: &str) -> Transaction {
        Transaction {
            place: self.0.clone(),
            plugin: plugin.to_owned(),
            pairs: None,
            written: BTreeSet::new(),
        }
    }
}

/// One run's view of its plugin's store.
#[derive(Debug)]
pub struct Transaction {
    place: StateBackend,
    plugin: String,
    /// The pairs; `None` before they are read.
    pairs: Option<Pairs>,
    /// The keys that were set or deleted.
    written: BTreeSet<String>,
}

impl Transaction {
    async fn pairs(&mut self) -> Result<&mut Pairs, CapabilityError> {
        let pairs = match self.pairs.take() {
            Some(pairs) => pairs,
            None => self.place.read(&self.plugin).await?,
        };
        Ok(self.pairs.insert(pairs))
    }

    /// Returns the value of `key`.
    ///
    /// # Errors
    /// Returns `invalid` or `limit` for the key, and `transient` if the store cannot be read now.
    pub async fn get(
        &mut self,
        key: &str,
        context: &PluginContext,
    ) -> Result<Option<Vec<u8>>, CapabilityError> {
        check_key(key, context)?;
        Ok(self.pairs().await?.get(key).cloned())
    }

    /// Sets `key` to `value` in this run's view.
    ///
    /// # Errors
    /// Returns `invalid` or `limit` for the key or the size of the store, and `transient` if the
    /// store cannot be read now.
    pub async fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        context: &PluginContext,
    ) -> Result<(), CapabilityError> {
        check_key(&key, context)?;
        let pairs = self.pairs().await?;
        let others = pairs.iter().filter(|(other, _)| **other != key);
        let (keys, bytes) = others.fold((0_u64, 0_u64), |(keys, bytes), (key, value)| {
            (keys + 1, bytes + size(key, value))
        });
        context.within(Limit::StateKeys, keys + 1)?;
        context.within(Limit::StateBytes, bytes + size(&key, &value))?;
        pairs.insert(key.clone(), value);
        self.written.insert(key);
        Ok(())
    }

    /// Removes `key` from this run's view.
    ///
    /// # Errors
    /// Returns the errors of [`Transaction::get`].
    pub async fn delete(
        &mut self,
        key: String,
        context: &PluginContext,
    ) -> Result<(), CapabilityError> {
        check_key(&key, context)?;
        self.pairs().await?.remove(&key);
        self.written.insert(key);
        Ok(())
    }

    /// Returns the keys that begin with `prefix`, sorted.
    ///
    /// # Errors
    /// Returns `transient` if the store cannot be read now.
    pub async fn keys(&mut self, prefix: &str) -> Result<Vec<String>, CapabilityError> {
        let pairs = self.pairs().await?;
        Ok(pairs
            .range(prefix.to_owned()..)
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect())
    }

    /// Writes the changes to the store.
    ///
    /// # Errors
    /// Returns `transient` if the store cannot be written now.
    pub async fn commit(&mut self) -> Result<(), CapabilityError> {
        let written = std::mem::take(&mut self.written);
        if written.is_empty() {
            return Ok(());
        }
        let pairs = self.pairs.take().unwrap_or_default();
        let changes = written
            .into_iter()
            .map(|key| (pairs.get(&key).cloned(), key))
            .map(|(value, key)| (key, value))
            .collect();
        self.place.write(&self.plugin, changes).await
    }
}

fn size(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

fn check_key(key: &str, context: &PluginContext) -> Result<(), CapabilityError> {
    if key.is_empty() {
        return Err(CapabilityError::invalid("state: the key is empty; give it a name"));
    }
    context.within(Limit::StateKeyBytes, key.len() as u64)
}

impl StateBackend {
    async fn read(&self, plugin: &str) -> Result<Pairs, CapabilityError> {
        match self {
            Self::Memory(stores) => Ok(lock(stores).get(plugin).cloned().unwrap_or_default()),
            Self::Directory(directory) => {
                let path = file(directory, plugin);
                blocking(plugin, move || read_file(&path)).await
            }
        }
    }

    async fn write(&self, plugin: &str, changes: Changes) -> Result<(), CapabilityError> {
        match self {
            Self::Memory(stores) => {
                change(&mut lock(stores), plugin, changes);
                Ok(())
            }
            Self::Directory(directory) => {
                let (directory, path) = (directory.clone(), file(directory, plugin));
                blocking(plugin, move || {
                    make_directory(&directory)?;
                    write_file(&path, &changes)
                })
                .await
            }
        }
    }
}

fn lock(
    stores: &Mutex<BTreeMap<String, Pairs>>,
) -> std::sync::MutexGuard<'_, BTreeMap<String, Pairs>> {
    stores.lock().unwrap_or_else(PoisonError::into_inner)
}

fn change(stores: &mut BTreeMap<String, Pairs>, plugin: &str, changes: Changes) {
    let pairs = stores.entry(plugin.to_owned()).or_default();
    for (key, value) in changes {
        match value {
            Some(value) => pairs.insert(key, value),
            None => pairs.remove(&key),
        };
    }
}

/// Returns the file of a plugin. Plugin names consist of letters, digits, `-`, `_` and `.`, without
/// a leading `.` (checked by the configuration).
fn file(directory: &Path, plugin: &str) -> PathBuf {
    directory.join(format!("{plugin}.sqlite"))
}

fn make_directory(directory: &Path) -> rusqlite::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Err(error) if error.kind() != Io::AlreadyExists => {
            let error = format!("cannot make {}: {error}", directory.display());
            Err(rusqlite::Error::InvalidPath(PathBuf::from(error)))
        }
        _ => Ok(()),
    }
}

async fn blocking<R: Send + 'static>(
    plugin: &str,
    work: impl FnOnce() -> rusqlite::Result<R> + Send + 'static,
) -> Result<R, CapabilityError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| unusable(plugin, &error)),
        Err(error) => Err(unusable(plugin, &error)),
    }
}

fn unusable(plugin: &str, error: &dyn std::fmt::Display) -> CapabilityError {
    CapabilityError::transient(format!(
        "the state of plugin `{plugin}` cannot be used ({error}); make hookrun's state directory writable"
    ))
}

fn read_file(path: &Path) -> rusqlite::Result<Pairs> {
    if !path.exists() {
        return Ok(Pairs::new());
    }
    let connection = open(path)?;
    let mut statement = connection.prepare("SELECT key, value FROM pairs")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn write_file(path: &Path, changes: &[(String, Option<Vec<u8>>)]) -> rusqlite::Result<()> {
    let mut connection = open(path)?;
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for (key, value) in changes {
        match value {
            Some(value) => transaction.execute(
                "INSERT OR REPLACE INTO pairs (key, value) VALUES (?1, ?2)",
                (key, value),
            )?,
            None => transaction.execute("DELETE FROM pairs WHERE key = ?1", (key,))?,
        };
    }
    transaction.commit()
}

/// The migrations from each version to the next.
const MIGRATIONS: [&str; 1] =
    ["CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID"];

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    sqlite::migrate(&mut connection, &MIGRATIONS).map_err(|error| match error {
        MigrationError::Newer { version } => rusqlite::Error::InvalidPath(PathBuf::from(format!(
            "{} has version {version}, and this hookrun knows up to {}",
            path.display(),
            MIGRATIONS.len()
        ))),
        MigrationError::Sqlite(error) => error,
    })?;
    Ok(connection)
}
