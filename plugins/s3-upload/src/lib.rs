//! A post-build plugin that uploads outputs and their closures to a binary cache in an object
//! store.
//!
//! For each event it takes the closure, without the paths that a named key has signed and those
//! that the cache already has. It then uploads some hundred paths at a time: first the NARs, then
//! the narinfos, which make the paths visible, references before referrers. The host makes the
//! signatures. Every step can be repeated, because the cache shows what is already done.
//!
//! ```toml
//! [plugins.cache]
//! source = "bundled:s3-upload"
//! hooks = ["post-build"]
//! [plugins.cache.config]
//! bucket = "cache"                          # the name of an object store
//! compression = "zstd"                      # or "xz", "none"; `level` sets its level
//! skip-signed-by = ["cache.nixos.org-1"]
//! # key = "cache.example.org-1"             # by default every key that is granted signs
//! # closure = true                          # false: the outputs alone
//! # priority = 30                           # for the nix-cache-info of a new cache
//! # want-mass-query = true
//! [plugins.cache.grant]
//! nix-store = "closure"
//! object-store = ["cache"]
//! signing = ["cache.example.org-1"]
//! ```

mod cache_info;
mod config;
mod narinfo;
mod plan;

use hookrun_sdk::nix_store::{self, PathInfo};
use hookrun_sdk::object_store::{Object, ObjectStore, StoredNar};
use hookrun_sdk::{
    Error, ErrorKind, Failure, Outcome, PostBuild, Scope, Want, Wants, log, post_build, signing,
};

use crate::config::Config;
use crate::plan::Tally;

/// The number of paths that are looked up or uploaded in one call. The host works on many of them
/// concurrently. An interrupted attempt loses at most one batch.
const BATCH: usize = 256;
/// The maximum size of the narinfos in one call. The narinfo of a path with thousands of references
/// has hundreds of KiB.
const MAX_NARINFOS: usize = 2 << 20;
/// The directory of the NARs in the cache.
const NARS: &str = "nar";

struct Upload;

impl PostBuild for Upload {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        let store = ObjectStore::named(config.bucket.clone());
        let outputs: Vec<String> = event.outputs.iter().map(|output| output.path.clone()).collect();
        let valid = infos(&outputs)?;
        if valid.is_empty() {
            // The outputs were collected before a grant or a root took effect, or the build's
            // result was not kept. A retry cannot help.
            return Ok(Outcome::new(format!(
                "nothing to upload: no output of {} is valid any longer",
                event.name
            )));
        }
        let mut tally =
            Tally { invalid: outputs.len().saturating_sub(valid.len()), ..Tally::default() };
        let paths = if config.closure {
            let roots: Vec<String> = valid.into_iter().map(|info| info.path).collect();
            nix_store::closure(&roots)?
        } else {
            plan::references_first(valid).into_iter().map(|info| info.path).collect()
        };
        let keys = match config.keys() {
            Some(keys) => keys,
            None => signing::keys()?,
        };
        let mut missing = Vec::new();
        for batch in paths.chunks(BATCH) {
            missing.extend(wanted(&store, &config, batch, &mut tally)?);
        }
        if !missing.is_empty() {
            check_cache_info(&store, &config, &event.store_dir)?;
        }
        let cache = Cache { store, config, keys, store_dir: event.store_dir };
        let total = missing.len();
        for batch in missing.chunks(BATCH) {
            cache.upload(batch, &mut tally).map_err(|(path, error)| {
                let done = tally.uploaded;
                Failure::from(error.context(format!("after {done} of {total} paths, {path}")))
            })?;
            log::debug(format!("{} of {total} paths were uploaded", tally.uploaded));
        }
        if tally.unsigned > 0 {
            log::warn(
                "uploaded without a signature; grant `signing = [\"NAME\"]`, or clients must trust the cache itself",
            );
        }
        Ok(tally.outcome())
    }
}

/// Returns the information about `paths`, without those that are not valid. If the information
/// about paths with many references does not fit into one call, it is split.
fn infos(paths: &[String]) -> Result<Vec<PathInfo>, Error> {
    match nix_store::path_infos(paths) {
        Err(error) if error.kind == ErrorKind::Limit && paths.len() > 1 => {
            let (first, second) = paths.split_at(paths.len() / 2);
            let mut found = infos(first)?;
            found.extend(infos(second)?);
            Ok(found)
        }
        found => Ok(found?.into_iter().flatten().collect()),
    }
}

/// Returns those of `paths` to upload, in the same order: not signed by a key in `skip-signed-by`,
/// and not in the cache.
fn wanted(
    store: &ObjectStore,
    config: &Config,
    paths: &[String],
    tally: &mut Tally,
) -> Result<Vec<String>, Error> {
    let paths = if config.skip_signed_by.is_empty() {
        paths.to_vec()
    } else {
        plan::not_signed_by(infos(paths)?, &config.skip_signed_by, &mut tally.signed)
    };
    let names: Vec<String> = paths.iter().map(|path| narinfo::key(path)).collect();
    let exist = store.exists(&names)?;
    let missing: Vec<String> = paths
        .into_iter()
        .zip(exist)
        .filter_map(|(path, exists)| {
            tally.present += usize::from(exists);
            (!exists).then_some(path)
        })
        .collect();
    Ok(missing)
}

/// Writes the `nix-cache-info` of a new cache, and checks that an existing one has the same store
/// directory.
fn check_cache_info(store: &ObjectStore, config: &Config, store_dir: &str) -> Result<(), Failure> {
    if let Some(text) = store.get(cache_info::KEY, cache_info::MAX_LENGTH)? {
        return cache_info::check(&String::from_utf8_lossy(&text), store_dir).map_err(|what| {
            Failure::permanent(format!(
                "object store `{}`: {what}; name another store in `bucket`",
                config.bucket
            ))
        });
    }
    let text = cache_info::new(store_dir, config.priority, config.want_mass_query);
    Ok(store.put(cache_info::KEY, cache_info::CONTENT_TYPE, text.as_bytes())?)
}

/// The destination of paths, and the form in which they are stored.
struct Cache {
    store: ObjectStore,
    config: Config,
    keys: Vec<String>,
    store_dir: String,
}

impl Cache {
    /// Uploads `paths`, which are sorted with references first. An error names the path that
    /// failed; all paths before it are uploaded.
    fn upload(&self, paths: &[String], tally: &mut Tally) -> Result<(), (String, Error)> {
        let at = |path: Option<&String>| {
            let path = path.cloned().unwrap_or_default();
            move |error| (path, error)
        };
        let infos = infos(paths).map_err(at(paths.first()))?;
        if let Some(gone) = paths.iter().find(|path| infos.iter().all(|info| info.path != **path)) {
            let error = Error::permanent(
                "it is not valid in the Nix store any longer; it was garbage-collected",
            );
            return Err((gone.clone(), error));
        }
        let Config { compression, level, .. } = self.config;
        let sent = self
            .store
            .put_nars(NARS, compression.into(), level, paths)
            .map_err(at(paths.first()))?;
        let stored: Vec<(&PathInfo, &StoredNar)> = infos.iter().zip(&sent.stored).collect();
        self.publish(&stored, tally).map_err(at(paths.first()))?;
        match sent.failure {
            Some(error) => {
                // A path that was collected does not come back.
                let error = match error.kind {
                    ErrorKind::NotFound => Error::permanent(error.message),
                    _ => error,
                };
                Err((paths.get(stored.len()).cloned().unwrap_or_default(), error))
            }
            None => Ok(()),
        }
    }

    /// Signs the paths and writes their narinfos, each after those of its references.
    fn publish(&self, stored: &[(&PathInfo, &StoredNar)], tally: &mut Tally) -> Result<(), Error> {
        let paths: Vec<String> = stored.iter().map(|(info, _)| info.path.clone()).collect();
        let mut signatures = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            signatures.push(signing::sign_paths(key, &paths)?);
        }
        let levels = plan::levels(stored.iter().map(|(info, _)| *info));
        for level in levels {
            let mut objects = Vec::new();
            let mut bytes = 0;
            for index in level {
                let Some((info, stored)) = stored.get(index) else { continue };
                // A new signature replaces an old one by the same key name, which may be of a
                // former key. Clients cannot use an invalid signature.
                let others = info
                    .signatures
                    .iter()
                    .filter(|signature| !self.keys.iter().any(|key| plan::names(signature, key)));
                let ours = signatures.iter().filter_map(|by_key| by_key.get(index));
                let signatures: Vec<&str> = others.chain(ours).map(String::as_str).collect();
                let compression = self.config.compression.into();
                let body = narinfo::text(&self.store_dir, info, compression, stored, &signatures);
                tally.unsigned += usize::from(info.ca.is_none() && signatures.is_empty());
                bytes += body.len();
                objects.push(Object {
                    key: narinfo::key(&info.path),
                    content_type: narinfo::CONTENT_TYPE.to_owned(),
                    body: body.into_bytes(),
                });
                tally.file_bytes += stored.file_size;
                tally.nar_bytes += stored.nar_size;
                if bytes >= MAX_NARINFOS {
                    bytes = 0;
                    self.write(&std::mem::take(&mut objects), tally)?;
                }
            }
            self.write(&objects, tally)?;
        }
        Ok(())
    }

    fn write(&self, objects: &[Object], tally: &mut Tally) -> Result<(), Error> {
        if objects.is_empty() {
            return Ok(());
        }
        self.store.put_all(objects)?;
        tally.uploaded += objects.len();
        Ok(())
    }
}

hookrun_sdk::plugin! {
    plugin: Upload,
    hooks: [PostBuild],
    wants: Wants {
        nix_store: Scope::Closure,
        object_store: Want::Required,
        signing: Want::Optional,
        ..Wants::NOTHING
    },
    config_schema: include_str!("config_schema.json"),
}
