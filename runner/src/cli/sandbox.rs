//! Formats the state of the sandbox for `status` and `check`.

use crate::supervise::needs;
use hookrun_config::Config;
use hookrun_host::wall::{self, Identity, User};

/// Describes the user that guests run as when the current user runs the worker.
pub(super) fn guests(config: Option<&Config>) -> String {
    match config.map(needs::identity) {
        Some(Ok(Identity::User(User { name, uid, .. }))) => format!("{name} (uid {uid})"),
        Some(Err(_)) => "no user, because `user` under [worker] is not valid".to_owned(),
        Some(Ok(Identity::Powerless)) | None => {
            let is_root = rustix::process::geteuid().is_root();
            let better =
                if is_root { "; recommended: `user = \"hookrun\"` under [worker]" } else { "" };
            format!("{}{better}", wall::powerless())
        }
    }
}

/// Returns the parts of the sandbox that are missing, each with the fix.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut problems: Vec<String> = needs::identity(config).err().into_iter().collect();
    let fix = if config.worker.require_sandbox {
        "no plugin runs, because of `require-sandbox = true`"
    } else {
        "plugins run without it"
    };
    problems.extend(wall::missing().into_iter().map(|lack| format!("sandbox: {lack} ({fix})")));
    problems
}
