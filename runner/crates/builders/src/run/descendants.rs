//! The processes that a process has started, as listed by the kernel (Linux only).

/// Kills all processes started by `pid` and by those.
pub(crate) fn end_descendants(pid: u32) {
    for pid in descendants(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Returns whether the kernel lists the children of a process (`CONFIG_PROC_CHILDREN`).
pub(crate) fn are_children_known() -> bool {
    let pid = std::process::id();
    std::path::Path::new(&format!("/proc/{pid}/task/{pid}/children")).exists()
}

/// Returns all processes started by `pid` and by those, deepest first; none except on Linux.
pub(crate) fn descendants(pid: u32) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    for child in children.split_ascii_whitespace().filter_map(|text| text.parse::<u32>().ok()) {
        found.extend(descendants(child));
        found.extend(i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw));
    }
    found
}
