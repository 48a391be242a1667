//! The file descriptors Nix gives its build hook, and children that die with us. The only unsafe
//! code of this room.
//!
//! Nix gives 0 (requests), 1 and 2 (one pipe: replies, log), 4 (writing end of the build log) and 5
//! (its reading end; Nix's own hook collects ssh's complaints there). The end of a build is the end
//! of 2 or of 4, so neither may leak into a process that outlives the build, and no file of ours
//! may ever take the number 4 or 5.

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors that Nix's own hook expects besides the standard ones.
const NIXS: [RawFd; 2] = [4, 5];

/// Signals that ask a process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Has [`reserve`] been called? If not, 4 and 5 may be anything of ours, and no child may have
/// them.
static RESERVED: AtomicBool = AtomicBool::new(false);

/// Keeps 4 and 5 for Nix's own hook: closed on exec from now on, and taken by `/dev/null` where Nix
/// did not give them. Turns standard output, which is the reply pipe too, into `/dev/null`. To be
/// called before anything is opened.
pub fn reserve() {
    for fd in NIXS {
        // SAFETY: `fcntl` with F_GETFD and F_SETFD takes plain numbers and touches no memory; a
        // number that is not open is an error value.
        let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        if !open
            && let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")
        {
            use std::os::fd::AsRawFd as _;
            if null.as_raw_fd() == fd {
                // Opened right there: it stays. Leaked on purpose, for the life of the process.
                std::mem::forget(null);
            } else {
                // SAFETY: `null` is open; `fd` is not open, as the `fcntl` above found, so nobody
                // else's descriptor is replaced.
                unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) };
            }
        }
    }
    RESERVED.store(true, Ordering::Relaxed);
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // Where it fails, standard output stays what it is, and nothing prints there anyway.
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// From here on a signal that asks this process to end (SIGTERM, SIGINT, SIGHUP) runs `act` on a
/// thread of its own and then ends the process, with code 1 and without running anything else. To
/// be called before any thread is started.
pub fn when_told_to_end(act: impl FnOnce() + Send + 'static) {
    // SAFETY: `sigset_t` is plain data, made valid by `sigemptyset`; the other calls take pointers
    // to it, which live on the stack.
    let signals = unsafe {
        let mut signals = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut signals);
        for signal in ENDING {
            libc::sigaddset(&raw mut signals, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        signals
    };
    let waits = move || {
        let mut signal = 0;
        // SAFETY: two pointers to values on this stack.
        while unsafe { libc::sigwait(&raw const signals, &raw mut signal) } != 0 {}
        let _ = catch_unwind(AssertUnwindSafe(act));
        // SAFETY: ends the process without running anything of ours; what the kernel frees is all
        // there is.
        unsafe { libc::_exit(1) }
    };
    // Without the thread these signals would be ignored: better to die of them.
    if std::thread::Builder::new().name("signals".to_owned()).spawn(waits).is_err() {
        unblock_signals();
    }
}

/// Lets this thread, or a child, die of the signals again: a process that a session starts has its
/// mask. Async-signal-safe.
pub fn unblock_signals() {
    // SAFETY: as in `when_told_to_end`; all three functions are async-signal-safe
    // (signal-safety(7)).
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Closes all but the standard streams, as ssh itself does first: what Nix leaks to it (4 and 5
/// among it) must not stay open in what it starts. To be called before anything is opened.
pub fn close_others() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing is open yet that belongs to a value of this process; the call takes plain
    // numbers. Where the kernel does not know it (before Linux 5.9), everything stays open, as
    // everything of ours is close-on-exec.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0);
    }
}

/// The standard streams become `/dev/null`: another process has them now.
pub fn let_go_of_standard_streams() {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        return;
    };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Makes `command` die when this process dies; its own children do not.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: as in `bequeath`, of which this is the last part.
    unsafe { command.pre_exec(move || die_with(parent)) }
}

/// Between fork and exec. Async-signal-safe.
fn die_with(parent: rustix::process::Pid) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(std::io::ErrorKind::NotFound.into());
        }
    }
    Ok(())
}

/// Makes `command` inherit 4 and 5, and die when this process dies.
pub fn bequeath(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    let reserved = RESERVED.load(Ordering::Relaxed);
    let before_exec = move || {
        for fd in NIXS.into_iter().filter(|_| reserved) {
            // SAFETY: as in `reserve`; async-signal-safe.
            unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
        }
        unblock_signals();
        die_with(parent)
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
    // allowed: it makes five system calls (fcntl twice, sigprocmask, prctl, getppid), allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) }
}
