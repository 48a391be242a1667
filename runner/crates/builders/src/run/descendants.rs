//! The processes that a process has started.

/// Kills all processes started by `pid` and by those.
pub(crate) fn end_descendants(pid: u32) {
    for pid in i32::try_from(pid).map(descendants).unwrap_or_default() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Returns all processes started by `pid` and by those, deepest first; none where the system does
/// not list children.
pub(crate) fn descendants(pid: i32) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for child in hookrun_system::process::children_of(pid) {
        found.extend(descendants(child));
        found.extend(rustix::process::Pid::from_raw(child));
    }
    found
}
