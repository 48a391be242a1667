//! Processes: what is known of others, and what this one can become.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::Pid;

use crate::os;

/// How Linux shows the path of a program whose file has another name now, or none (proc(5)).
pub const DELETED: &str = " (deleted)";

/// A command that runs the very program of this process, also after its file was replaced. Where
/// the system cannot do that (macOS), the file that has its name now.
pub fn this_program() -> Command {
    let mut command = Command::new(os::this_program());
    command.arg0("hookrun");
    command
}

/// The path of the program that a process runs, with [`DELETED`] at the end if its file is gone;
/// none if the process cannot be seen.
pub fn program_of(pid: i32) -> Option<PathBuf> {
    os::program_of(pid)
}

/// A path that starts the very program of a process, if it can be seen.
pub fn image_of(pid: i32) -> PathBuf {
    os::image_of(pid)
}

/// The arguments of a process; none if they cannot be seen, on macOS always.
pub fn arguments_of(pid: i32) -> Vec<String> {
    let bytes = os::arguments_of(pid);
    let mut arguments: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    while arguments.last().is_some_and(String::is_empty) {
        arguments.pop();
    }
    arguments
}

/// The user that a process runs as.
pub fn owner_of(pid: i32) -> Option<u32> {
    os::owner_of(pid)
}

/// Since when a process runs, in units of the system, which with its number says which process it
/// is; and whether it has ended without having been waited for. None if it cannot be seen.
pub fn started(pid: i32) -> Option<Started> {
    os::started(pid)
}

/// See [`started`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// When it was started.
    pub time: u64,
    /// Has it ended?
    pub is_zombie: bool,
}

/// The children of a process.
pub fn children_of(pid: i32) -> Vec<i32> {
    os::children_of(pid)
}

/// Does the system tell the children of a process?
pub fn are_children_known() -> bool {
    os::are_children_known()
}

/// All file locks of this machine as proc(5) shows them in `/proc/locks`, at most `most` bytes;
/// nothing on macOS.
pub fn locks(most: u64) -> String {
    os::locks(most)
}

/// Has the child ended within this time? It is not waited for.
///
/// # Errors
/// What the system says.
pub fn ends_within(child: &mut Child, time: Duration) -> io::Result<bool> {
    os::ends_within(child, time)
}

/// Has this process killed when the thread that started it ends; on Linux only.
///
/// # Errors
/// What the system says.
pub fn die_with_parent() -> io::Result<()> {
    os::die_with_parent()
}

/// Forks; returns the new process, and none in it. This process must have one thread.
///
/// # Errors
/// What the system says.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller has one thread, so that the new process has all threads that the old one
    // had, and no lock is held by one that is missing.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        process => Ok(Pid::from_raw(process)),
    }
}

/// Ends this process without running anything: for a process that was forked, in which what runs at
/// an ordinary exit belongs to the other one.
pub fn end_now(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

/// Becomes a user for good, without supplementary groups.
///
/// # Errors
/// What the system says; this process is then nobody to go on with.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the list of groups is empty.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    os::set_ids(uid, gid)
}

/// Is this process's group in the foreground of its terminal? Asked through libc: both answers are
/// 0 for a group whose leader is outside the PID namespace, which rustix takes for impossible.
pub fn is_in_foreground() -> bool {
    // SAFETY: no pointers are passed. Without a terminal the first gives -1.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// Does this process lead its session? Asked through libc, as above.
pub fn leads_session() -> bool {
    // SAFETY: both calls take and give numbers only.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// How far a process stands back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// Behind all others of its priority.
    Batch,
    /// When nobody else wants the processor or the disk.
    Idle,
}

/// Sets how this process, and all that it starts, is scheduled beside the nice value; what the
/// system refuses or does not have (macOS) is left as it is.
pub fn schedule(scheduling: Scheduling) {
    os::schedule(scheduling);
}

/// Lowers the priority of the whole session among sessions, where the system schedules them
/// (Linux, sched(7), autogroup).
pub fn lower_session(nice: i32) {
    os::lower_session(nice);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    #[test]
    fn this_process_is_known() {
        assert_eq!(program_of(own()), std::env::current_exe().ok());
        assert_eq!(owner_of(own()), Some(rustix::process::geteuid().as_raw()));
        let started = started(own()).unwrap();
        assert!(started.time > 0 && !started.is_zombie);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_arguments_of_this_process_are_known() {
        let expected: Vec<String> = std::env::args().collect();
        assert_eq!(arguments_of(own()), expected);
    }

    #[test]
    fn a_child_is_waited_for_no_longer_than_asked() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        if are_children_known() {
            assert!(children_of(own()).contains(&pid));
        }
        assert!(!ends_within(&mut child, Duration::from_millis(1)).unwrap());
        child.kill().unwrap();
        assert!(ends_within(&mut child, Duration::from_mins(1)).unwrap());
        assert!(started(pid).is_none_or(|started| started.is_zombie));
        assert!(!child.wait().unwrap().success());
    }
}
