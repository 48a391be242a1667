//! A post-build plugin that uploads outputs and their closures to a binary cache in an object
//! store.
//!
//! For each event it takes the closure, and decides about each path: which are left out, because a
//! named key has signed them or a rule says so, and in which form the others are stored. The host
//! does the rest (`binary-cache.push`). Every step can be repeated, because the cache shows what is
//! already done. For several caches, configure the plugin several times: each has its own tasks.
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
//! # allow-unsigned = true                   # if no key is granted
//! # closure = true                          # false: the outputs alone
//! # listings = true                         # also debug-info
//! # listing-compression = "zstd"              # of listings
//! # cache-control = "max-age=31536000"      # of the NARs
//! # priority = 30                           # for the nix-cache-info of a new cache
//! # want-mass-query = true
//! [[plugins.cache.config.paths]]            # the first that matches a path decides
//! name = "*.iso"                            # also min-size, max-size, origin, signed-by
//! upload = false                            # or compression, level, storage-class, tags
//! [plugins.cache.grant]
//! nix-store = "closure"
//! object-store = ["cache"]
//! signing = ["cache.example.org-1"]
//! ```

mod config;
mod plan;

use hookrun_sdk::binary_cache::{self, Failure as NotUploaded, Group, Report};
use hookrun_sdk::nix_store::{self, PathInfo};
use hookrun_sdk::{
    Error, ErrorKind, Failure, Outcome, PostBuild, Scope, Want, Wants, log, post_build, signing,
};

use crate::config::Config;
use crate::plan::Plan;

/// The number of paths about which the host is asked in one call.
const BATCH: usize = 256;
/// The number of paths that are uploaded in one call: less than `limits.list-items`.
const MAX_PATHS: usize = 10_000;

struct Upload;

impl PostBuild for Upload {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        let outputs: Vec<String> = event.outputs.iter().map(|output| output.path.clone()).collect();
        let valid: Vec<String> = infos(&outputs)?.into_iter().map(|info| info.path).collect();
        if valid.is_empty() {
            // The outputs were collected before a grant or a root took effect, or the build's
            // result was not kept. A retry cannot help.
            return Ok(Outcome::new(format!(
                "nothing to upload: no output of {} is valid any longer",
                event.name
            )));
        }
        let invalid = outputs.len().saturating_sub(valid.len());
        let paths = if config.closure { nix_store::closure(&valid)? } else { valid };
        let keys = match config.keys() {
            Some(keys) => keys,
            None => signing::keys()?,
        };
        let mut plan = Plan::default();
        for batch in paths.chunks(BATCH) {
            if config.needs_infos() {
                for info in infos(batch)? {
                    plan.decide(&config, info);
                }
            } else {
                for path in batch {
                    plan.add(path.clone());
                }
            }
        }
        let settings = config.settings(keys);
        let mut report = Report::default();
        for groups in calls(plan.groups(&config)) {
            let part = binary_cache::push(&config.bucket, &settings, &groups, &plan.elsewhere)?;
            add(&mut report, part);
            if let Some(NotUploaded { path, error }) = report.failures.first() {
                let wanted = report.paths.saturating_sub(report.present);
                // A path that was collected does not come back.
                let error = match error.kind {
                    ErrorKind::NotFound => Error::permanent(error.message.clone()),
                    _ => error.clone(),
                };
                let context = format!("after {} of {wanted} paths, {path}", report.uploaded);
                return Err(error.context(context).into());
            }
        }
        if report.unsigned > 0 {
            log::warn(
                "uploaded without a signature; grant `signing = [\"NAME\"]`, or clients must trust the cache itself",
            );
        }
        Ok(plan.outcome(&report, invalid))
    }
}

/// Splits paths into calls that are not too large. References are in the same or an earlier call as
/// long as the paths have one form.
fn calls(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut calls = vec![Vec::new()];
    let mut room = MAX_PATHS;
    for mut group in groups {
        let mut rest = std::mem::take(&mut group.paths);
        while !rest.is_empty() {
            if room == 0 {
                calls.push(Vec::new());
                room = MAX_PATHS;
            }
            let later = rest.split_off(rest.len().min(room));
            room -= rest.len();
            if let Some(call) = calls.last_mut() {
                call.push(Group { paths: std::mem::replace(&mut rest, later), ..group.clone() });
            }
        }
    }
    calls
}

fn add(report: &mut Report, part: Report) {
    report.paths += part.paths;
    report.uploaded += part.uploaded;
    report.file_bytes += part.file_bytes;
    report.nar_bytes += part.nar_bytes;
    report.present += part.present;
    report.signed += part.signed;
    report.unsigned += part.unsigned;
    report.different += part.different;
    report.failures.extend(part.failures);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_closure_is_split_into_calls() {
        let group = |count: usize| Group {
            paths: (0..count).map(|number| format!("/s/{number}")).collect(),
            ..Group::default()
        };
        let sizes = |groups: Vec<Group>| -> Vec<Vec<usize>> {
            let calls = calls(groups).into_iter();
            calls.map(|call| call.iter().map(|group| group.paths.len()).collect()).collect()
        };
        assert_eq!(sizes(vec![group(3), group(4)]), [vec![3, 4]]);
        assert_eq!(
            sizes(vec![group(MAX_PATHS + 1), group(MAX_PATHS)]),
            [vec![MAX_PATHS], vec![1, MAX_PATHS - 1], vec![1]]
        );
    }
}
