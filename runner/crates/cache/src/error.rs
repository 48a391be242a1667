//! Errors of the commands of `hookrun cache`.

use hookrun_capability::CapabilityError;
use hookrun_nix::database::DatabaseError;
use hookrun_nix::narinfo::NarinfoError;

/// The reason why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store refused a request.
    #[error(transparent)]
    Store(#[from] CapabilityError),
    /// The store has no usable `nix-cache-info`.
    #[error("`{place}` is not a binary cache: {reason}")]
    NotACache {
        /// Where the store is.
        place: String,
        /// The problem, and the fix.
        reason: String,
    },
    /// An argument has no meaning for this cache.
    #[error("{0}")]
    Usage(String),
    /// This machine lacks something.
    #[error("{0}")]
    Environment(String),
    /// Nix's database cannot be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A narinfo cannot be made.
    #[error("the narinfo of `{path}` cannot be written: {source}")]
    Narinfo {
        /// The store path.
        path: String,
        /// The cause.
        source: NarinfoError,
    },
    /// Another machine changed an object again and again.
    #[error("`{key}` was changed by others again and again; try again later")]
    Contended {
        /// The key of the object.
        key: String,
    },
}

impl CacheError {
    /// Returns an error about the narinfo of a path.
    pub(crate) fn narinfo(path: impl Into<String>) -> impl FnOnce(NarinfoError) -> Self {
        let path = path.into();
        move |source| Self::Narinfo { path, source }
    }
}
