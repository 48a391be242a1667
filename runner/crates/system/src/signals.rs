//! Signals that ask this process to end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::process;

/// Signals that ask a process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Handles signals that ask this process to end (SIGTERM, SIGINT, SIGHUP): runs `act` on a thread
/// of its own, then ends the process with code 1, without destructors or exit handlers. Must be
/// called before any thread is started.
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
        process::end_now(1)
    };
    // Without the thread these signals would be ignored. Unblocked, they end the process.
    if std::thread::Builder::new().name("signals".to_owned()).spawn(waits).is_err() {
        unblock();
    }
}

/// Unblocks all signals for this thread. A child inherits the mask of the session that starts it.
/// Async-signal-safe.
pub fn unblock() {
    // SAFETY: as in `when_told_to_end`; all three functions are async-signal-safe
    // (signal-safety(7)).
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Makes a write to a closed pipe an error instead of a signal, as the standard library does before
/// `main`. For a program that has another entry point.
pub fn ignore_broken_pipes() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
