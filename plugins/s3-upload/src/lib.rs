//! A post-build plugin that uploads what was built, and what it needs, to a binary cache in an
//! object store.
//!
//! Per event: the closure of the outputs, without what a named key signed and without what the
//! cache has; then for each path, references before referrers, the NAR and after it the narinfo,
//! which makes the path visible. Signatures are made by the host. All of it may be repeated at any
//! point: what is done is found in the cache.
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
use hookrun_sdk::object_store::ObjectStore;
use hookrun_sdk::{
    Error, ErrorKind, Failure, Outcome, PostBuild, Scope, Want, Wants, log, post_build, signing,
};

use crate::config::Config;
use crate::plan::{Plan, Tally};

/// Names of objects in one question: some ten KiB of names.
const BATCH: usize = 256;

struct Upload;

impl PostBuild for Upload {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        let store = ObjectStore::named(config.bucket.clone());
        let outputs: Vec<String> = event.outputs.iter().map(|output| output.path.clone()).collect();
        let valid: Vec<PathInfo> = nix_store::path_infos(&outputs)?.into_iter().flatten().collect();
        if valid.is_empty() {
            // Collected before a grant or a root took effect, or a build whose result was not kept.
            // No retry brings it back.
            return Ok(Outcome::new(format!(
                "nothing to upload: no output of {} is valid any more",
                event.name
            )));
        }
        let mut tally =
            Tally { invalid: outputs.len().saturating_sub(valid.len()), ..Tally::default() };
        let infos = if config.closure {
            let roots: Vec<String> = valid.into_iter().map(|info| info.path).collect();
            nix_store::closure(&roots)?
        } else {
            plan::references_first(valid)
        };
        let keys = match config.keys() {
            Some(keys) => keys,
            None => signing::keys()?,
        };
        let plan = Plan::new(infos, &config.skip_signed_by);
        tally.signed.clone_from(&plan.signed);
        let missing = missing(&store, plan, &mut tally)?;
        if !missing.is_empty() {
            check_cache_info(&store, &config, &event.store_dir)?;
        }
        if keys.is_empty()
            && missing.iter().any(|info| info.ca.is_none() && info.signatures.is_empty())
        {
            log::warn(
                "uploading without a signature; grant `signing = [\"NAME\"]`, or readers must trust the cache itself",
            );
        }
        let total = missing.len();
        for info in &missing {
            let bytes =
                upload(&store, &config, &keys, &event.store_dir, info).map_err(|error| {
                    let done = tally.uploaded;
                    Failure::from(
                        error.context(format!("after {done} of {total} paths, {}", info.path)),
                    )
                })?;
            tally.uploaded += 1;
            tally.file_bytes += bytes;
            tally.nar_bytes += info.nar_size;
        }
        Ok(tally.outcome())
    }
}

/// What of the plan the cache does not have, in the plan's order.
fn missing(store: &ObjectStore, plan: Plan, tally: &mut Tally) -> Result<Vec<PathInfo>, Error> {
    let mut missing = Vec::new();
    let mut wanted = plan.wanted.into_iter().peekable();
    while wanted.peek().is_some() {
        let batch: Vec<PathInfo> = wanted.by_ref().take(BATCH).collect();
        let names: Vec<String> = batch.iter().map(|info| narinfo::key(&info.path)).collect();
        let exist = store.exists(&names)?;
        for (info, exists) in batch.into_iter().zip(exist) {
            if exists {
                tally.present += 1;
            } else {
                missing.push(info);
            }
        }
    }
    Ok(missing)
}

/// A new cache gets its `nix-cache-info`; the one that is there must be for our store directory.
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

/// Uploads one path; gives the bytes of the stored NAR.
fn upload(
    store: &ObjectStore,
    config: &Config,
    keys: &[String],
    store_dir: &str,
    info: &PathInfo,
) -> Result<u64, Error> {
    let nar = nix_store::open_nar(&info.path).map_err(|error| match error.kind {
        ErrorKind::NotFound => Error::permanent(error.message),
        _ => error,
    })?;
    let key = narinfo::nar_key(&info.nar_hash, config.compression.into());
    let stored = store.put_nar(&key, config.compression.into(), config.level, &nar)?;
    drop(nar);
    // Ours replaces one of the same name: that may be of a former key, and one that does not hold
    // is of no use to readers.
    let others = info
        .signatures
        .iter()
        .filter(|signature| !keys.iter().any(|key| plan::names(signature, key)));
    let mut signatures: Vec<String> = others.cloned().collect();
    for key in keys {
        signatures.push(signing::sign_path(key, &info.path)?);
    }
    let text =
        narinfo::text(store_dir, info, &key, config.compression.into(), &stored, &signatures);
    store.put(&narinfo::key(&info.path), narinfo::CONTENT_TYPE, text.as_bytes())?;
    log::debug(format!("uploaded {} ({})", info.path, plan::size(stored.file_size)));
    Ok(stored.file_size)
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
