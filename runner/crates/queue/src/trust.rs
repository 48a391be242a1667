//! Decides whose spool files are accepted, and for which events.
//!
//! In a system installation every user may add a file to the spool, since build users must. The
//! worker therefore decides by the file's owner, which the kernel recorded. Root and the worker's
//! own user may report every event. A build user may only report that two builds differ, for the
//! store that the worker itself uses. Files of other users are rejected. A build user is a member
//! of Nix's `build-users-group` (`nixbld`), a file of that group (its builders and hooks run with
//! it as their group), or a uid of `auto-allocate-uids`.

use std::collections::BTreeSet;
use std::path::Path;

use hookrun_nix::event::{Event, HookEvent, NixDirs};
use hookrun_nix::is_store_path;

/// Nix's default for `build-users-group` as root.
const DEFAULT_GROUP: &str = "nixbld";
/// Nix's defaults for `start-id` and `id-count`, the uids of `auto-allocate-uids` on Linux (2.12
/// on, `globals.hh`).
const AUTO_ALLOCATED: std::ops::Range<u32> = 0x3400_0000..(0x3400_0000 + 128 * 65536);

/// The trust in a file's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Root, or the worker's own user.
    Trusted,
    /// A build user.
    BuildUser,
}

/// The users whose files are accepted.
#[derive(Debug, Clone)]
pub struct Trust {
    own: u32,
    build_users: BTreeSet<u32>,
    build_group: Option<u32>,
    nix: NixDirs,
}

impl Trust {
    /// Reads the users and directories from this process's environment and nix.conf.
    pub fn from_env() -> Self {
        let nix = NixDirs::from_env();
        let group = build_users_group(
            &std::fs::read_to_string(nix.conf.join("nix.conf")).unwrap_or_default(),
        );
        let (build_group, build_users) = members(&group).unzip();
        Self {
            own: rustix::process::geteuid().as_raw(),
            build_users: build_users.unwrap_or_default(),
            build_group,
            nix,
        }
    }

    /// Returns root, the worker's user and the build users.
    pub fn uids(&self) -> impl Iterator<Item = u32> {
        let own: BTreeSet<u32> = [0, self.own].into();
        own.into_iter().chain(
            self.build_users.iter().copied().filter(move |uid| *uid != 0 && *uid != self.own),
        )
    }

    /// Returns the trust in the owner of a file.
    ///
    /// # Errors
    /// The owner's files are rejected.
    pub fn owner(&self, uid: u32, gid: u32) -> Result<Owner, String> {
        if uid == 0 || uid == self.own {
            Ok(Owner::Trusted)
        } else if self.build_users.contains(&uid)
            || self.build_group == Some(gid)
            || AUTO_ALLOCATED.contains(&uid)
        {
            Ok(Owner::BuildUser)
        } else {
            Err(format!(
                "its owner, uid {uid}, is neither root nor a build user; if it is one, add it to `build-users-group` of Nix"
            ))
        }
    }

    /// Checks that this owner may report this event, and that Nix can have caused it.
    ///
    /// # Errors
    /// The event is rejected, for the returned reason.
    pub fn admit(&self, owner: Owner, event: &Event) -> Result<(), String> {
        check_shape(event)?;
        if owner == Owner::Trusted {
            return Ok(());
        }
        if !matches!(event.hook, HookEvent::Diff(_)) {
            return Err("a build user may only report events of the diff hook".into());
        }
        if event.nix != self.nix {
            return Err(format!(
                "it names the Nix directories {}; a build user may only report events for {}; set NIX_STORE_DIR, NIX_STATE_DIR and NIX_CONF_DIR for the worker as well",
                show(&event.nix),
                show(&self.nix),
            ));
        }
        Ok(())
    }
}

/// Checks the id and all paths of an event: file names contain the id, and plugins get the paths.
fn check_shape(event: &Event) -> Result<(), String> {
    if event.id.len() != 36
        || !event.id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    {
        return Err("its id is not a UUID".into());
    }
    let NixDirs { store, state, conf, real_store } = &event.nix;
    for directory in [store, state, conf].into_iter().chain(real_store) {
        let plain = |path: &Path| {
            path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
        };
        if !directory.is_absolute() || !plain(directory) {
            return Err(format!("`{}` is not an absolute path without `..`", directory.display()));
        }
    }
    let store = event.nix.store.to_string_lossy();
    let paths: Vec<&str> = match &event.hook {
        HookEvent::PostBuild(event) => {
            event.outputs.iter().map(|output| output.path.as_str()).collect()
        }
        HookEvent::Diff(event) => vec![&event.output.path, &event.previous, &event.current],
    };
    if let Some(path) =
        paths.into_iter().chain([event.drv_path()]).find(|path| !is_store_path(&store, path))
    {
        return Err(format!("`{}` is not a store path below {store}", path.escape_debug()));
    }
    if Path::new(event.drv_path()).extension().is_none_or(|extension| extension != "drv") {
        return Err(format!("`{}` is not a derivation", event.drv_path()));
    }
    Ok(())
}

fn show(dirs: &NixDirs) -> String {
    format!("{}, {} and {}", dirs.store.display(), dirs.state.display(), dirs.conf.display())
}

/// Returns the value of `build-users-group` in the text of a nix.conf; empty if there are no build
/// users.
fn build_users_group(conf: &str) -> String {
    let mut values = conf.lines().filter_map(|line| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        (key.trim() == "build-users-group").then(|| value.trim().to_owned())
    });
    values.next_back().unwrap_or_else(|| DEFAULT_GROUP.to_owned())
}

/// Returns the gid of a group and the uids of its members.
fn members(group: &str) -> Option<(u32, BTreeSet<u32>)> {
    use uzers::os::unix::GroupExt as _;
    let group = uzers::get_group_by_name(group)?;
    let users = group.members().iter().filter_map(uzers::get_user_by_name);
    Some((group.gid(), users.map(|user| user.uid()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{diff, post_build};

    const OWN: u32 = 1000;

    fn trust() -> Trust {
        Trust {
            own: OWN,
            build_users: [30001, 30002].into(),
            build_group: Some(30000),
            nix: diff("a").nix,
        }
    }

    #[test]
    fn owners_are_trusted_by_uid_and_gid() {
        let trust = trust();
        for (uid, gid, expected) in [
            (0, 0, Some(Owner::Trusted)),
            (OWN, 5, Some(Owner::Trusted)),
            (30002, 30000, Some(Owner::BuildUser)),
            (30009, 30000, Some(Owner::BuildUser)),
            (0x3400_0000, 7, Some(Owner::BuildUser)),
            (1001, 1001, None),
        ] {
            assert_eq!(trust.owner(uid, gid).ok(), expected, "{uid}:{gid}");
        }
        assert_eq!(trust.uids().collect::<Vec<_>>(), [0, OWN, 30001, 30002]);
    }

    #[test]
    fn a_build_user_reports_diff_events_of_the_workers_store_only() {
        let trust = trust();
        assert_eq!(trust.admit(Owner::BuildUser, &diff("a")), Ok(()));
        assert_eq!(trust.admit(Owner::Trusted, &post_build("a")), Ok(()));
        insta::assert_snapshot!(trust.admit(Owner::BuildUser, &post_build("a")).unwrap_err(), @"a build user may only report events of the diff hook");
        let mut event = diff("a");
        event.nix.state = "/elsewhere".into();
        insta::assert_snapshot!(trust.admit(Owner::BuildUser, &event).unwrap_err(), @"it names the Nix directories /nix/store, /elsewhere and /etc/nix; a build user may only report events for /nix/store, /nix/var/nix and /etc/nix; set NIX_STORE_DIR, NIX_STATE_DIR and NIX_CONF_DIR for the worker as well");
    }

    #[test]
    fn events_with_invalid_ids_or_paths_are_rejected() {
        let refused = |change: &dyn Fn(&mut Event)| {
            let mut event = post_build("a");
            change(&mut event);
            trust().admit(Owner::Trusted, &event).unwrap_err()
        };
        insta::assert_snapshot!(refused(&|event| event.id = "../../../../../../../../../etc/passwd".into()), @"its id is not a UUID");
        insta::assert_snapshot!(refused(&|event| event.nix.state = "/x/../etc".into()), @"`/x/../etc` is not an absolute path without `..`");
        insta::assert_snapshot!(refused(&|event| event.nix.store = "/etc".into()), @"`/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a` is not a store path below /etc");
        insta::assert_snapshot!(
            refused(&|event| if let HookEvent::PostBuild(event) = &mut event.hook { event.drv_path = event.outputs[0].path.clone() }),
            @"`/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a` is not a derivation"
        );
    }

    #[test]
    fn the_build_users_group_is_read_from_nix_conf() {
        assert_eq!(build_users_group(""), "nixbld");
        assert_eq!(
            build_users_group("cores = 1\n build-users-group =  builders # ours\n"),
            "builders"
        );
        assert_eq!(build_users_group("build-users-group =\n"), "");
    }
}
