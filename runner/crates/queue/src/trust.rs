//! Whose spool files are believed, and what they may say.
//!
//! In a system installation anybody may add a file to the spool, since build users must. So the
//! worker believes a file by its owner's uid, which the kernel wrote: root and the worker's own
//! user may say anything that Nix says; a build user may only say that two builds differ, of a
//! store that the worker itself knows. Others are not believed. A build user is a member of Nix's
//! `build-users-group` (`nixbld`), a file of that group (its builders and hooks run with it as
//! their group), or a uid of `auto-allocate-uids`.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::path::Path;

use hookrun_nix::event::{Event, HookEvent, NixDirs};
use hookrun_nix::is_store_path;

/// Nix's default for `build-users-group` as root.
const DEFAULT_GROUP: &str = "nixbld";
/// Nix's defaults for `start-id` and `id-count`, the uids of `auto-allocate-uids` on Linux (2.12
/// on, `globals.hh`).
const AUTO_ALLOCATED: std::ops::Range<u32> = 0x3400_0000..(0x3400_0000 + 128 * 65536);

/// How far a file's owner is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Root, or the worker's own user.
    Trusted,
    /// A build user.
    BuildUser,
}

/// Who is believed.
#[derive(Debug, Clone)]
pub struct Trust {
    own: u32,
    build_users: BTreeSet<u32>,
    build_group: Option<u32>,
    nix: NixDirs,
}

impl Trust {
    /// What holds for a worker in this process's environment.
    pub fn from_env() -> Self {
        let nix = NixDirs::from_env();
        let group = build_users_group(
            &std::fs::read_to_string(nix.conf.join("nix.conf")).unwrap_or_default(),
        );
        let (build_group, build_users) =
            CString::new(group).ok().and_then(|group| members(&group)).unzip();
        Self {
            own: rustix::process::geteuid().as_raw(),
            build_users: build_users.unwrap_or_default(),
            build_group,
            nix,
        }
    }

    /// Root, the worker's user and the build users.
    pub fn uids(&self) -> impl Iterator<Item = u32> {
        let own: BTreeSet<u32> = [0, self.own].into();
        own.into_iter().chain(
            self.build_users.iter().copied().filter(move |uid| *uid != 0 && *uid != self.own),
        )
    }

    /// How far the owner of a file is believed.
    ///
    /// # Errors
    /// If it is not.
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

    /// May such an owner hand over this event, and is it one that Nix can have caused?
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn admit(&self, owner: Owner, event: &Event) -> Result<(), String> {
        check_shape(event)?;
        if owner == Owner::Trusted {
            return Ok(());
        }
        if !matches!(event.hook, HookEvent::Diff(_)) {
            return Err("a build user may hand over events of the diff hook only".into());
        }
        if event.nix != self.nix {
            return Err(format!(
                "it speaks of a Nix with {}, and a build user may only of {}; set NIX_STORE_DIR and its like for the worker too",
                show(&event.nix),
                show(&self.nix),
            ));
        }
        Ok(())
    }
}

/// Is everything in it where it has to be? File names are made of the id, and plugins are given the
/// paths.
fn check_shape(event: &Event) -> Result<(), String> {
    if event.id.len() != 36
        || !event.id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    {
        return Err("its id is no UUID".into());
    }
    let NixDirs { store, state, conf, real_store } = &event.nix;
    for directory in [store, state, conf].into_iter().chain(real_store) {
        let plain = |path: &Path| {
            path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
        };
        if !directory.is_absolute() || !plain(directory) {
            return Err(format!("`{}` is no absolute path", directory.display()));
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
        return Err(format!("`{}` is no store path below {store}", path.escape_debug()));
    }
    if Path::new(event.drv_path()).extension().is_none_or(|extension| extension != "drv") {
        return Err(format!("`{}` is no derivation", event.drv_path()));
    }
    Ok(())
}

fn show(dirs: &NixDirs) -> String {
    format!("{}, {} and {}", dirs.store.display(), dirs.state.display(), dirs.conf.display())
}

/// The value of `build-users-group` in the text of a nix.conf; empty if builds have no users.
fn build_users_group(conf: &str) -> String {
    let mut values = conf.lines().filter_map(|line| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        (key.trim() == "build-users-group").then(|| value.trim().to_owned())
    });
    values.next_back().unwrap_or_else(|| DEFAULT_GROUP.to_owned())
}

/// The gid of a group and the uids of its members; none if there is no such group.
fn members(group: &CStr) -> Option<(u32, BTreeSet<u32>)> {
    // SAFETY: `group` is a C string. The worker asks once, at its start, before it has other
    // threads, so nothing else writes to the static memory that getgrnam and getpwnam give out; the
    // names are copied before getpwnam is called.
    let (gid, names) = unsafe {
        let entry = libc::getgrnam(group.as_ptr()).as_ref()?;
        let mut names = Vec::new();
        let mut member = entry.gr_mem;
        while let Some(name) = member.as_ref().filter(|name| !name.is_null()) {
            names.push(CStr::from_ptr(*name).to_owned());
            member = member.add(1);
        }
        (entry.gr_gid, names)
    };
    // SAFETY: as above; `name` is a C string, and the uid is copied out at once.
    let uid =
        |name: CString| unsafe { libc::getpwnam(name.as_ptr()).as_ref().map(|user| user.pw_uid) };
    Some((gid, names.into_iter().filter_map(uid).collect()))
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
    fn owners() {
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
    fn what_a_build_user_may_say() {
        let trust = trust();
        assert_eq!(trust.admit(Owner::BuildUser, &diff("a")), Ok(()));
        assert_eq!(trust.admit(Owner::Trusted, &post_build("a")), Ok(()));
        insta::assert_snapshot!(trust.admit(Owner::BuildUser, &post_build("a")).unwrap_err(), @"a build user may hand over events of the diff hook only");
        let mut event = diff("a");
        event.nix.state = "/elsewhere".into();
        insta::assert_snapshot!(trust.admit(Owner::BuildUser, &event).unwrap_err(), @"it speaks of a Nix with /nix/store, /elsewhere and /etc/nix, and a build user may only of /nix/store, /nix/var/nix and /etc/nix; set NIX_STORE_DIR and its like for the worker too");
    }

    #[test]
    fn what_nobody_may_say() {
        let refused = |change: &dyn Fn(&mut Event)| {
            let mut event = post_build("a");
            change(&mut event);
            trust().admit(Owner::Trusted, &event).unwrap_err()
        };
        insta::assert_snapshot!(refused(&|event| event.id = "../../../../../../../../../etc/passwd".into()), @"its id is no UUID");
        insta::assert_snapshot!(refused(&|event| event.nix.state = "/x/../etc".into()), @"`/x/../etc` is no absolute path");
        insta::assert_snapshot!(refused(&|event| event.nix.store = "/etc".into()), @"`/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a` is no store path below /etc");
        insta::assert_snapshot!(
            refused(&|event| if let HookEvent::PostBuild(event) = &mut event.hook { event.drv_path = event.outputs[0].path.clone() }),
            @"`/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a` is no derivation"
        );
    }

    #[test]
    fn the_group_of_nix_conf() {
        assert_eq!(build_users_group(""), "nixbld");
        assert_eq!(
            build_users_group("cores = 1\n build-users-group =  builders # ours\n"),
            "builders"
        );
        assert_eq!(build_users_group("build-users-group =\n"), "");
    }
}
