//! Finds secrets that other users can read or replace, by the modes and owners of the files that
//! the configuration names.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hookrun_config::{Config, SecretFile};

/// The bits of a mode that chmod(1) sets.
const PERMISSIONS: u32 = 0o7777;

/// Returns the files with secrets that other users can read or replace, each with one line that
/// ends with the fix. Files that do not exist are left out, because the code that reads them
/// reports that. Must be called as the user that runs the worker.
pub fn exposed(config: &Config) -> Vec<(SecretFile, String)> {
    let me = rustix::process::geteuid().as_raw();
    let exposed = |secret: SecretFile| {
        let found = std::fs::metadata(&secret.path).ok()?;
        let mode = found.mode() & PERMISSIONS;
        let problem = judge(&secret.path, mode, found.uid(), found.gid(), me)?;
        Some((secret, problem))
    };
    config.secret_files().into_iter().filter_map(exposed).collect()
}

/// Returns the problem of a file with a secret that user `me` reads.
fn judge(path: &Path, mode: u32, owner: u32, group: u32, me: u32) -> Option<String> {
    let shown = path.display();
    let is_foreign = owner != 0 && owner != me;
    // Members of root's group could read the file in any case.
    let is_open = mode & 0o007 != 0 || (mode & 0o070 != 0 && group != 0);
    let chown = format!("chown {me}: {shown}");
    let chmod = format!("chmod 600 {shown}");
    match (is_foreign, is_open) {
        (false, false) => None,
        (false, true) => Some(format!(
            "the secret in {shown} can be read by other users (mode {mode:04o}); run `{chmod}`"
        )),
        (true, false) => Some(format!(
            "the secret in {shown} can be read and replaced by its owner, uid {owner}; run `{chown}`"
        )),
        (true, true) => Some(format!(
            "the secret in {shown} can be read by other users (mode {mode:04o}) and replaced by its \
             owner, uid {owner}; run `{chown} && {chmod}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_worker_and_root_can_read_or_replace_a_secret() {
        let said = |mode, owner, group, me| {
            judge(Path::new("/s/key"), mode, owner, group, me).unwrap_or_default()
        };
        for (mode, owner, group, me) in [
            (0o600, 0, 0, 0),
            (0o400, 0, 0, 0),
            (0o440, 0, 0, 0),
            (0o600, 1000, 100, 1000),
            (0o400, 0, 0, 1000),
        ] {
            assert_eq!(said(mode, owner, group, me), "", "{mode:o} {owner}:{group} for {me}");
        }
        insta::assert_snapshot!(said(0o644, 0, 0, 0), @"the secret in /s/key can be read by other users (mode 0644); run `chmod 600 /s/key`");
        insta::assert_snapshot!(said(0o640, 1000, 100, 1000), @"the secret in /s/key can be read by other users (mode 0640); run `chmod 600 /s/key`");
        insta::assert_snapshot!(said(0o600, 30001, 30000, 0), @"the secret in /s/key can be read and replaced by its owner, uid 30001; run `chown 0: /s/key`");
        insta::assert_snapshot!(said(0o664, 30001, 30000, 0), @"the secret in /s/key can be read by other users (mode 0664) and replaced by its owner, uid 30001; run `chown 0: /s/key && chmod 600 /s/key`");
    }
}
