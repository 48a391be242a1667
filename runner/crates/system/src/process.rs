//! Processes: facts about other processes, and changes to this one.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::Pid;

use crate::os;

/// The end of the path that Linux shows for a program whose file was renamed or removed (proc(5)).
pub const DELETED: &str = " (deleted)";

/// The exit code of a shell, and of `posix_spawn` under qemu-user, for a program that could not be
/// executed.
const NOT_EXECUTED: i32 = 127;

/// Returns a command that runs the program of this process, even if its file was replaced. On macOS
/// it runs the file that has the name of the program now.
pub fn this_program() -> Command {
    let mut command = Command::new(os::this_program());
    command.arg0("hookrun");
    command
}

/// Describes how a process ended, for a message: its exit code or signal, and what it wrote to
/// standard error, on one line.
pub fn describe_end(status: ExitStatus, stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() && status.code() == Some(NOT_EXECUTED) {
        format!(
            "ended with {status} and without a message, which usually means that its program could \
             not be executed"
        )
    } else if lines.is_empty() {
        format!("ended with {status} and without a message")
    } else {
        format!("ended with {status}: {}", lines.join(" "))
    }
}

/// Describes why a command cannot be started, for a message: its program and the error of the
/// system.
pub fn describe_start(command: &Command, error: &io::Error) -> String {
    let program = command.get_program().to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOEXEC) => format!(
            "{program} ({error}: it is not a program of this machine, or its emulator is not \
             registered with binfmt_misc)"
        ),
        _ => format!("{program} ({error})"),
    }
}

/// Returns the path of the program that a process runs, with [`DELETED`] at the end if its file is
/// gone; `None` if the process is not visible.
pub fn program_of(pid: i32) -> Option<PathBuf> {
    os::program_of(pid)
}

/// Returns a path that executes the program of a process, if the process is visible.
pub fn image_of(pid: i32) -> PathBuf {
    os::image_of(pid)
}

/// Returns the arguments of a process; empty if they are not visible, and on macOS.
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

/// Returns the user that a process runs as.
pub fn owner_of(pid: i32) -> Option<u32> {
    os::owner_of(pid)
}

/// Returns the start time of a process, which identifies it together with its number, and whether
/// it is a zombie; `None` if it is not visible.
pub fn started(pid: i32) -> Option<Started> {
    os::started(pid)
}

/// See [`started`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The start time, in units of the system.
    pub time: u64,
    /// Whether it has ended and its parent has not waited for it.
    pub is_zombie: bool,
}

/// Returns the children of a process.
pub fn children_of(pid: i32) -> Vec<i32> {
    os::children_of(pid)
}

/// Returns whether the system lists the children of a process.
pub fn are_children_known() -> bool {
    os::are_children_known()
}

/// Returns the file locks of this machine in the format of `/proc/locks` (proc(5)), at most `most`
/// bytes; empty on macOS.
pub fn locks(most: u64) -> String {
    os::locks(most)
}

/// Returns whether the child ends within this time. The caller must still wait for it.
///
/// # Errors
/// Returns the error of the system.
pub fn ends_within(child: &mut Child, time: Duration) -> io::Result<bool> {
    os::ends_within(child, time)
}

/// Asks the kernel to kill this process when the thread that started it ends. Linux only.
///
/// # Errors
/// Returns the error of the system.
pub fn die_with_parent() -> io::Result<()> {
    os::die_with_parent()
}

/// Forks; returns the child, and `None` in the child. This process must have one thread.
///
/// # Errors
/// Returns the error of the system.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the caller has one thread, so that the new process has all threads that the old one
    // had, and no lock is held by one that is missing.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        process => Ok(Pid::from_raw(process)),
    }
}

/// Ends this process without destructors or exit handlers. For a forked process, in which these
/// belong to the parent.
pub fn end_now(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

/// Changes to another user permanently, without supplementary groups.
///
/// # Errors
/// Returns the error of the system. The process must then end, because the change may be
/// incomplete.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the list of groups is empty.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    os::set_ids(uid, gid)
}

/// Returns whether the process group is in the foreground of its terminal. Uses libc, because both
/// calls return 0 if the leader of the group is outside the PID namespace, which rustix rejects.
pub fn is_in_foreground() -> bool {
    // SAFETY: no pointers are passed. Without a terminal the first gives -1.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// Returns whether this process leads its session. Uses libc for the same reason.
pub fn leads_session() -> bool {
    // SAFETY: both calls take and return only numbers.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// How a process is scheduled relative to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// After all others of its priority.
    Batch,
    /// Only when the processor and the disk are idle.
    Idle,
}

/// Sets the scheduling of this process and its children, in addition to the nice value. Ignores
/// settings that the system refuses or does not have (macOS).
pub fn schedule(scheduling: Scheduling) {
    os::schedule(scheduling);
}

/// Lowers the priority of the session relative to other sessions, if the system schedules sessions
/// (Linux autogroups, sched(7)). Otherwise does nothing.
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
    fn the_end_of_a_process_is_described_by_code_or_signal() {
        let run = |script: &str| {
            let output = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
            describe_end(output.status, &String::from_utf8(output.stderr).unwrap())
        };
        assert_eq!(run("exit 3"), "ended with exit status: 3 and without a message");
        assert_eq!(run("echo one >&2; echo two >&2; exit 1"), "ended with exit status: 1: one two");
        assert_eq!(
            run("exec 2>/dev/null; /no/such/program"),
            "ended with exit status: 127 and without a message, which usually means that its \
             program could not be executed"
        );
        assert_eq!(run("kill -9 $$"), "ended with signal: 9 (SIGKILL) and without a message");
    }

    #[test]
    fn a_program_that_cannot_be_started_is_named_with_the_reason() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        let start = || {
            let mut command = Command::new(&program);
            let error = command.spawn().unwrap_err();
            describe_start(&command, &error).replace(program.to_str().unwrap(), "PROGRAM")
        };
        assert_eq!(start(), "PROGRAM (No such file or directory (os error 2))");
        std::fs::write(&program, "not a program").unwrap();
        assert_eq!(start(), "PROGRAM (Permission denied (os error 13))");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let said = start();
        assert!(said.contains("Exec format error") && said.contains("binfmt_misc"), "{said}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_arguments_of_this_process_are_known() {
        let expected: Vec<String> = std::env::args().collect();
        assert_eq!(arguments_of(own()), expected);
    }

    #[test]
    fn waiting_for_a_child_ends_after_the_given_time() {
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
