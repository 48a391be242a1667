//! Adds signatures to narinfos that are in a cache.
//!
//! A signature makes clients trust a path, and a bucket may have been written by others. So a path
//! is signed only if something vouches for it: a signature by a trusted key, its own content
//! address, or the same path in the local store.

use hookrun_capability::signing::SigningKeys;
use hookrun_nix::database::{Database, PathInfo};
use hookrun_nix::event::NixDirs;
use hookrun_nix::narinfo::{Narinfo, PublicKeys};

use crate::trust::{self, Trust};
use crate::{Cache, CacheError};

/// What vouches for the contents of narinfos, and the keys that sign them.
pub struct Signer<'a> {
    /// The keys of the configuration.
    pub signing: &'a SigningKeys,
    /// The names of the keys that sign.
    pub names: Vec<String>,
    /// The trusted keys.
    pub trusted: &'a PublicKeys,
    /// Whether everything is signed.
    pub unverified: bool,
}

/// The result for one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signed {
    /// A signature was added.
    Added,
    /// It has the signatures already.
    Present,
    /// Nothing vouches for it.
    NotVouched,
    /// It is absent, or its narinfo cannot be used.
    Unusable,
}

impl Signer<'_> {
    /// Returns the narinfo with the signatures; unchanged if it has them.
    ///
    /// # Errors
    /// A key cannot be used.
    pub fn signed(&self, narinfo: &Narinfo) -> Result<Narinfo, CacheError> {
        let info = PathInfo {
            path: narinfo.store_path(),
            nar_hash: narinfo.nar_hash(),
            nar_size: narinfo.nar_size(),
            references: narinfo
                .references()
                .map(|name| format!("{}/{name}", narinfo.store_dir()))
                .collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
            ultimate: false,
            registration_time: 0,
        };
        let mut signed = narinfo.clone();
        for name in &self.names {
            let signature = self.signing.sign(name, narinfo.store_dir(), &info)?;
            signed = signed
                .with_signature(&signature)
                .map_err(CacheError::narinfo(narinfo.store_path()))?;
        }
        Ok(signed)
    }

    /// Returns whether something vouches for a narinfo.
    ///
    /// # Errors
    /// Nix's database cannot be read.
    pub fn vouches(&self, narinfo: &Narinfo) -> Result<bool, CacheError> {
        if self.unverified || trust::of(narinfo, self.trusted).0 == Trust::Trusted {
            return Ok(true);
        }
        Ok(local_info(&narinfo.store_path())?.is_some_and(|info| trust::agrees(narinfo, &info)))
    }

    /// Signs one path of a cache.
    ///
    /// # Errors
    /// As the store has it, or a key cannot be used.
    pub async fn sign(&self, cache: &Cache, hash: &str) -> Result<Signed, CacheError> {
        let mut result = Signed::Unusable;
        cache
            .change_narinfo(hash, false, |stored| {
                let Ok(narinfo) = &stored.narinfo else { return Ok(None) };
                if narinfo.hash_part() != hash {
                    return Ok(None);
                }
                let signed = self.signed(narinfo)?;
                if signed == *narinfo {
                    result = Signed::Present;
                    return Ok(None);
                }
                if !self.vouches(narinfo)? {
                    result = Signed::NotVouched;
                    return Ok(None);
                }
                result = Signed::Added;
                Ok(Some(signed))
            })
            .await?;
        Ok(result)
    }
}

/// Returns a valid path of the local store; none if there is none, or no Nix.
///
/// # Errors
/// Nix's database cannot be read.
pub(crate) fn local_info(path: &str) -> Result<Option<PathInfo>, CacheError> {
    match Database::open(&NixDirs::from_env()) {
        Ok(database) => Ok(database.path_infos(&[path.to_owned()])?.into_iter().flatten().next()),
        Err(hookrun_nix::database::DatabaseError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
