//! Finds out whether the Nix that builds uses the hooks of this user. That depends on where it
//! builds: in the process that the command starts, or in a daemon. A daemon accepts the setting
//! only from trusted users and ignores it silently for others (Nix 2.8 to 2.35, `daemon.cc`).

use std::path::Path;

use rustix::fs::Access;

use hookrun_nix as nix;
use hookrun_nix::event::NixDirs;

/// The process in which Nix builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DaemonAccess {
    /// In the process of the command: hooks run as this user.
    Direct,
    /// In a daemon: hooks run as root.
    Daemon {
        /// Whether it accepts settings from this user.
        trusted: bool,
    },
}

/// The facts that decide where Nix builds.
struct StoreFacts<'a> {
    /// The value of `NIX_REMOTE`.
    remote: &'a str,
    state_writable: bool,
    socket: bool,
}

/// Returns whether Nix uses the daemon for the store `auto` (Nix 2.8 to 2.35, `store-api.cc`): it
/// uses the files if it may write them, else the daemon if there is one.
fn through_daemon(place: &StoreFacts<'_>) -> bool {
    match place.remote {
        "" | "auto" => !place.state_writable && place.socket,
        remote => remote == "daemon" || remote.starts_with("unix:"),
    }
}

/// Finds out where the Nix with these directories builds for this process.
pub(super) fn find(dirs: &NixDirs) -> DaemonAccess {
    let socket = std::env::var_os("NIX_DAEMON_SOCKET_PATH")
        .map_or_else(|| dirs.state.join("daemon-socket/socket"), std::path::PathBuf::from);
    let remote = std::env::var("NIX_REMOTE").unwrap_or_default();
    let place = StoreFacts {
        remote: &remote,
        state_writable: rustix::fs::access(&dirs.state, Access::READ_OK | Access::WRITE_OK).is_ok(),
        socket: Path::new(&socket).exists(),
    };
    if !through_daemon(&place) {
        return DaemonAccess::Direct;
    }
    let trusted =
        rustix::process::geteuid().is_root() || daemon_says().unwrap_or_else(configuration_says);
    DaemonAccess::Daemon { trusted }
}

/// Asks the daemon, which reports this since Nix 2.16.
fn daemon_says() -> Option<bool> {
    let output = nix::command("nix")
        .args(["--extra-experimental-features", "nix-command", "store", "ping", "--json"])
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    said(&output.stdout)
}

/// Parses `{"trusted": 1, "url": "daemon", ...}`; some versions use a boolean.
fn said(json: &[u8]) -> Option<bool> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let trusted = value.get("trusted")?;
    trusted.as_bool().or_else(|| trusted.as_i64().map(|number| number != 0))
}

/// Looks for the user in `trusted-users`, if the daemon does not answer. The daemon's own
/// configuration may differ, but usually it is the same file.
fn configuration_says() -> bool {
    let output = nix::command("nix")
        .args(["--extra-experimental-features", "nix-command", "show-config", "--json"])
        .stdin(std::process::Stdio::null())
        .output();
    let users = output.map(|output| trusted_users(&output.stdout)).unwrap_or_default();
    let Some(me) = uzers::get_user_by_uid(rustix::process::geteuid().as_raw()) else {
        return false;
    };
    let name = me.name().to_string_lossy();
    let groups: Vec<String> = uzers::get_user_groups(me.name(), me.primary_group_id())
        .unwrap_or_default()
        .iter()
        .map(|group| group.name().to_string_lossy().into_owned())
        .collect();
    is_listed(&users, &name, &groups)
}

fn trusted_users(json: &[u8]) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let users = value.pointer("/trusted-users/value").and_then(serde_json::Value::as_array);
    users.into_iter().flatten().filter_map(|user| user.as_str().map(str::to_owned)).collect()
}

/// Returns whether the user is listed, by Nix's rule (`matchUser` in `nix-daemon.cc`): a name, `@`
/// and a group, or `*`.
fn is_listed(users: &[String], name: &str, groups: &[String]) -> bool {
    users.iter().any(|user| match user.strip_prefix('@') {
        Some(group) => groups.iter().any(|known| known == group),
        None => user == "*" || user == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_and_daemon_builds_are_told_apart() {
        let daemon = |remote, state_writable, socket| {
            through_daemon(&StoreFacts { remote, state_writable, socket })
        };
        assert!(!daemon("", true, true), "root writes the files itself");
        assert!(daemon("", false, true));
        assert!(!daemon("auto", false, false));
        assert!(daemon("daemon", true, true));
        assert!(daemon("unix:///run/nix.sock", true, true));
        assert!(!daemon("local", false, true));
    }

    #[test]
    fn trusted_users_and_groups_are_recognised() {
        assert_eq!(said(br#"{"trusted":1,"url":"daemon","version":"2.26.3"}"#), Some(true));
        assert_eq!(said(br#"{"trusted":false}"#), Some(false));
        assert_eq!(said(br#"{"url":"daemon"}"#), None);
        let users = trusted_users(br#"{"trusted-users":{"value":["root","@wheel"],"aliases":[]}}"#);
        assert!(is_listed(&users, "ann", &["wheel".into()]));
        assert!(!is_listed(&users, "bob", &["users".into()]));
        assert!(is_listed(&["*".into()], "bob", &[]));
        assert!(trusted_users(b"what?").is_empty());
    }
}
