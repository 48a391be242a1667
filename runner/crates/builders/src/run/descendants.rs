//! The descendants of a process.

/// Kills all descendants of `pid`.
pub(crate) fn end_descendants(pid: u32) {
    for pid in i32::try_from(pid).map(descendants).unwrap_or_default() {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Returns all descendants of `pid`, deepest first; none if the system does not list children.
pub(crate) fn descendants(pid: i32) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for child in hookrun_system::process::children_of(pid) {
        found.extend(descendants(child));
        found.extend(rustix::process::Pid::from_raw(child));
    }
    found
}
