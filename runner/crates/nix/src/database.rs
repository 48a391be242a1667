//! Reads Nix's database of valid paths, `<state>/db/db.sqlite`. The worker looks up the outputs of
//! events in it, and plugins use it through `nix-store` and `signing`. The host signs only data of
//! this database.
//!
//! The schema is internal to Nix but has been the same since schema 10 (Nix 1.12 to 2.35;
//! `libstore/schema.sql`, `ca` since 7, `sigs` since 9). Reading it needs no daemon and no root,
//! and takes about a millisecond. It works inside a diff hook, where the daemon refuses the user.
//! This module never writes and never runs Nix.

mod dependents;
mod inputs;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use inputs::Inputs;
use nix_derivation::{HashAlgorithm, NixHash};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Statement, Transaction};

use super::derivation::Derivation;
use crate::event::NixDirs;

/// The time that a reader waits for a writer's checkpoint. Otherwise writers do not block readers
/// of a write-ahead log.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum number of paths in one closure. A large NixOS system has about 10,000.
pub const MAX_CLOSURE: usize = 200_000;

/// The information in Nix's database about a valid path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The full store path.
    pub path: String,
    /// The hash of the NAR: `sha256:` and 52 characters in Nix's base32.
    pub nar_hash: String,
    /// The size of the NAR in bytes.
    pub nar_size: u64,
    /// Full store paths, sorted, including a reference to the path itself.
    pub references: Vec<String>,
    /// The full store path of the `.drv` file, which need not be valid.
    pub deriver: Option<String>,
    /// Signatures of the form `name:base64`.
    pub signatures: Vec<String>,
    /// The content address.
    pub ca: Option<String>,
    /// Whether the path was built on this machine.
    pub ultimate: bool,
    /// The time of registration, in seconds since 1970.
    pub registration_time: u64,
}

/// A valid path with the values that are needed to select it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The full store path.
    pub path: String,
    /// The full store path of the `.drv` file, which need not be valid.
    pub deriver: Option<String>,
    /// Whether the path was built on this machine.
    pub ultimate: bool,
}

/// The reason why the database gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is no database.
    #[error("no Nix database at {}; set NIX_STATE_DIR to the state directory of the Nix that called", path.display())]
    Missing {
        /// The expected path of the database.
        path: PathBuf,
    },
    /// The database cannot be opened.
    #[error("Nix's database {} cannot be opened ({error}); the user that runs hookrun needs read access to it and to the files beside it", path.display())]
    Open {
        /// The path of the database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        error: rusqlite::Error,
    },
    /// A query failed.
    #[error("Nix's database {} cannot be read ({error})", path.display())]
    Query {
        /// The path of the database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        error: rusqlite::Error,
    },
    /// A row does not have the expected form.
    #[error(
        "the entry of `{store_path}` in Nix's database is not valid: {reason}; check it with `nix-store --verify`"
    )]
    Row {
        /// The store path of the row.
        store_path: String,
        /// The problem.
        reason: String,
    },
    /// A closure has more than [`MAX_CLOSURE`] paths.
    #[error("a closure has more than {MAX_CLOSURE} paths, the limit of hookrun")]
    TooLarge,
}

/// Nix's database, open for reading. Opening it is cheap, so open it again for each question to get
/// current data.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the database of the Nix with these directories.
    ///
    /// # Errors
    /// The database does not exist, or it cannot be opened.
    pub fn open(dirs: &NixDirs) -> Result<Self, DatabaseError> {
        Self::open_within(dirs, BUSY_TIMEOUT)
    }

    /// Opens the database, and waits at most `patience` for a lock of another process.
    ///
    /// # Errors
    /// Returns the errors of [`Database::open`].
    pub fn open_within(dirs: &NixDirs, patience: Duration) -> Result<Self, DatabaseError> {
        Self::open_file(&dirs.state.join("db/db.sqlite"), patience)
    }

    fn open_file(path: &Path, patience: Duration) -> Result<Self, DatabaseError> {
        if !path.exists() {
            return Err(DatabaseError::Missing { path: path.to_owned() });
        }
        match Self::try_open(path, false, patience) {
            // A reader without write access to the directory can use an existing write-ahead log,
            // but cannot create one (https://www.sqlite.org/wal.html, "Read-Only Databases"). If
            // there is no log, or an empty one, nobody is writing, and the file contains all data.
            // If there is a log that cannot be read, the newest paths would be missing, so that
            // remains an error.
            Err(error) if !has_log(path) => Self::try_open(path, true, patience).map_err(|_| error),
            result => result,
        }
        .map_err(|error| DatabaseError::Open { path: path.to_owned(), error })
    }

    fn try_open(path: &Path, immutable: bool, patience: Duration) -> Result<Self, rusqlite::Error> {
        let uri = file_uri(path, immutable);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri, flags)?;
        connection.busy_timeout(patience)?;
        // SQLite opens the file only with the first statement.
        connection.query_row("select 1 from ValidPaths limit 1", [], |_| Ok(())).optional()?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Returns information about `paths`, in the same order; none for a path that is not valid.
    ///
    /// # Errors
    /// The database cannot be read, or a row is not valid.
    pub fn path_infos(&self, paths: &[String]) -> Result<Vec<Option<PathInfo>>, DatabaseError> {
        let mut infos = Vec::with_capacity(paths.len());
        self.each_info(paths, &mut |info| {
            infos.push(info);
            Ok::<_, DatabaseError>(())
        })?;
        Ok(infos)
    }

    /// Passes information about each of `paths` to `take`, in the same order; none for a path that
    /// is not valid. All of it is from the same snapshot of the database.
    ///
    /// # Errors
    /// As for [`Database::path_infos`], and errors of `take`, which end the loop.
    pub fn each_info<E: From<DatabaseError>>(
        &self,
        paths: &[String],
        take: &mut dyn FnMut(Option<PathInfo>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut snapshot = self.snapshot()?;
        paths.iter().try_for_each(|path| take(snapshot.path_info(path)?))
    }

    /// Returns all valid paths, or those registered at `since` (seconds since 1970) or later,
    /// sorted by the time of registration.
    ///
    /// # Errors
    /// Returns the errors of [`Database::path_infos`].
    pub fn registered(&self, since: Option<u64>) -> Result<Vec<Registered>, DatabaseError> {
        let read = || {
            let mut statement = self.connection.prepare(
                "select path, nullif(deriver, ''), coalesce(ultimate, 0) from ValidPaths where registrationTime >= ?1
                 order by registrationTime, id",
            )?;
            let since = i64::try_from(since.unwrap_or(0)).unwrap_or(i64::MAX);
            let rows = statement.query_map([since], |row| {
                Ok(Registered {
                    path: row.get(0)?,
                    deriver: row.get(1)?,
                    ultimate: row.get::<_, i64>(2)? == 1,
                })
            })?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.query(error))
    }

    /// Returns the closure of `roots`, each path once, references before referrers. Roots that are
    /// not valid are left out.
    ///
    /// # Errors
    /// As for [`Database::path_infos`], or there are more than [`MAX_CLOSURE`] paths.
    pub fn closure(&self, roots: &[String]) -> Result<Vec<String>, DatabaseError> {
        let failed = |error| self.query(error);
        let transaction = self.connection.unchecked_transaction().map_err(failed)?;
        let prepare = |text| transaction.prepare(text).map_err(failed);
        let mut id_of = prepare("select id from ValidPaths where path = ?1")?;
        let mut path_of = prepare("select path from ValidPaths where id = ?1")?;
        let mut references_of = prepare(
            "select reference from Refs where referrer = ?1 and reference != ?1 order by reference desc",
        )?;
        let mut references = |id: i64| -> Result<Vec<i64>, DatabaseError> {
            let rows = references_of.query_map([id], |row| row.get(0)).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)
        };
        // Depth first: each path comes after its references. Nix allows no cycles; if there is one,
        // it is cut.
        let mut ordered = Vec::new();
        let mut entered = HashSet::new();
        for root in roots {
            let id = id_of.query_row([root], |row| row.get(0)).optional().map_err(failed)?;
            let Some(id) = id.filter(|id| entered.insert(*id)) else { continue };
            let mut way = vec![(id, references(id)?)];
            while let Some((id, left)) = way.last_mut() {
                match left.pop() {
                    Some(next) if entered.insert(next) => way.push((next, references(next)?)),
                    Some(_) => {}
                    None => {
                        ordered.push(path_of.query_row([*id], |row| row.get(0)).map_err(failed)?);
                        way.pop();
                    }
                }
                if entered.len() > MAX_CLOSURE {
                    return Err(DatabaseError::TooLarge);
                }
            }
        }
        Ok(ordered)
    }

    /// Returns the known outputs of `derivation`: from its text, from `DerivationOutputs`, or (for
    /// content-addressed outputs of the resolved derivation) the valid path that names it as its
    /// deriver. They are in the order of the derivation; unknown outputs are left out.
    ///
    /// # Errors
    /// Returns the errors of [`Database::path_infos`].
    pub fn outputs(&self, derivation: &Derivation) -> Result<Vec<(String, String)>, DatabaseError> {
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        if derivation.outputs.iter().any(|output| output.path.is_none()) {
            for (output, path) in
                self.registered_outputs(derivation).map_err(|error| self.query(error))?
            {
                known.entry(output).or_insert(path);
            }
        }
        Ok(derivation
            .outputs
            .iter()
            .filter_map(|output| {
                let path = output.path.clone().or_else(|| known.remove(&output.name))?;
                Some((output.name.clone(), path))
            })
            .collect())
    }

    /// Returns names and paths of outputs, the most probable first.
    fn registered_outputs(
        &self,
        derivation: &Derivation,
    ) -> Result<Vec<(String, String)>, rusqlite::Error> {
        let transaction = self.connection.unchecked_transaction()?;
        let mut statement = transaction.prepare(
            "select o.id, o.path from DerivationOutputs o join ValidPaths v on v.id = o.drv where v.path = ?1 order by o.id",
        )?;
        let rows = statement.query_map([&derivation.path], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut outputs: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
        // Newest first, because a rebuild of an impure derivation creates a new path.
        let mut statement =
            transaction.prepare("select path from ValidPaths where deriver = ?1 order by registrationTime desc, id desc")?;
        for path in statement.query_map([&derivation.path], |row| row.get::<_, String>(0))? {
            let path = path?;
            let name = crate::event::derivation_name(&path);
            let matching = derivation.outputs.iter().filter(|output| output.path_name == name);
            outputs.extend(matching.map(|output| (output.name.clone(), path.clone())));
        }
        Ok(outputs)
    }

    /// Returns a snapshot of the database, which later registrations and collections do not change.
    fn snapshot(&self) -> Result<Snapshot<'_>, DatabaseError> {
        let open = || {
            let transaction = self.connection.unchecked_transaction()?;
            let info = self.connection.prepare(
                "select id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca from ValidPaths where path = ?1",
            )?;
            let references = self
                .connection
                .prepare("select v.path from Refs r join ValidPaths v on v.id = r.reference where r.referrer = ?1")?;
            Ok(Snapshot { info, references, database: self, _transaction: transaction })
        };
        open().map_err(|error| self.query(error))
    }

    fn query(&self, error: rusqlite::Error) -> DatabaseError {
        DatabaseError::Query { path: self.path.clone(), error }
    }
}

/// A read transaction with its statements.
struct Snapshot<'c> {
    info: Statement<'c>,
    references: Statement<'c>,
    database: &'c Database,
    _transaction: Transaction<'c>,
}

/// A row of `ValidPaths`, in the order of the query.
type Row =
    (i64, String, i64, Option<String>, Option<i64>, Option<i64>, Option<String>, Option<String>);

impl Snapshot<'_> {
    fn path_info(&mut self, path: &str) -> Result<Option<PathInfo>, DatabaseError> {
        let query = |error| self.database.query(error);
        let row: Option<Row> =
            self.info.query_row([path], |row| row.try_into()).optional().map_err(query)?;
        let Some((id, hash, registration_time, deriver, nar_size, ultimate, sigs, ca)) = row else {
            return Ok(None);
        };
        let odd = |reason: String| DatabaseError::Row { store_path: path.to_owned(), reason };
        let nar_hash = NixHash::parse(&hash)
            .ok()
            .filter(|parsed| parsed.algorithm() == HashAlgorithm::Sha256)
            .ok_or_else(|| odd(format!("the hash is `{hash}`")))?;
        let rows = self.references.query_map([id], |row| row.get(0)).map_err(query)?;
        let mut references: Vec<String> = rows.collect::<Result<_, _>>().map_err(query)?;
        references.sort();
        Ok(Some(PathInfo {
            path: path.to_owned(),
            nar_hash: nar_hash.to_nix_nixbase32_string(),
            nar_size: u64::try_from(nar_size.unwrap_or(0))
                .map_err(|_| odd("the size is negative".into()))?,
            references,
            deriver: deriver.filter(|deriver| !deriver.is_empty()),
            signatures: sigs.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            ca: ca.filter(|ca| !ca.is_empty()),
            ultimate: ultimate == Some(1),
            registration_time: u64::try_from(registration_time).unwrap_or(0),
        }))
    }
}

/// Returns whether there is a write-ahead log that is not empty.
fn has_log(database: &Path) -> bool {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > 0)
}

/// Returns the URI that opens an SQLite database read-only.
pub fn file_uri(path: &Path, immutable: bool) -> String {
    format!("file:{}?mode=ro{}", uri_path(path), if immutable { "&immutable=1" } else { "" })
}

/// Escapes a path for a `file:` URI (<https://www.sqlite.org/uri.html>).
fn uri_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut uri, byte| {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            _ => {
                let _ = write!(uri, "%{byte:02x}");
            }
        }
        uri
    })
}

#[cfg(test)]
mod tests;
