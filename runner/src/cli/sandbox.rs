//! What `status` and `check` report about the sandbox of guests.

use crate::supervise::needs;
use hookrun_config::Config;
use hookrun_host::wall::{self, Identity, User};

/// Describes the user that guests run as when this user runs the worker.
pub(super) fn guests(config: Option<&Config>) -> String {
    match config.map(needs::identity) {
        Some(Ok(Identity::User(User { name, uid, .. }))) => format!("{name} (uid {uid})"),
        Some(Err(_)) => "no user: `user` under [worker] is wrong".to_owned(),
        Some(Ok(Identity::Powerless)) | None => {
            let is_root = rustix::process::geteuid().is_root();
            let better = if is_root { "; better `user = \"hookrun\"` under [worker]" } else { "" };
            format!("{}{better}", wall::powerless())
        }
    }
}

/// Returns what is wrong with the sandbox, each with the fix.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut problems: Vec<String> = needs::identity(config).err().into_iter().collect();
    let fix = if config.worker.require_sandbox {
        "nothing runs, because of `require-sandbox = true`"
    } else {
        "plugins run nevertheless"
    };
    problems.extend(wall::missing().into_iter().map(|lack| format!("sandbox: {lack} ({fix})")));
    problems
}
