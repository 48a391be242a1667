//! The file descriptors that Nix passes to its build hook, and children that inherit them.
//!
//! Nix passes 0 (requests), 1 and 2 (one pipe: replies, log), 4 (the writing end of the build log)
//! and 5 (its reading end, from which Nix's own hook reads the output of ssh). A build ends when 2
//! or 4 is closed, so neither may be inherited by a process that outlives the build, and no other
//! file may ever get the number 4 or 5.

use std::os::fd::RawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hookrun_system::child::Preparation;
use hookrun_system::descriptor;

/// The descriptors that Nix's own hook expects besides the standard streams.
const NIXS: [RawFd; 2] = [4, 5];

/// Whether [`reserve`] was called. If not, 4 and 5 may be other files, and no child may inherit
/// them.
static RESERVED: AtomicBool = AtomicBool::new(false);

/// Reserves 4 and 5 for Nix's own hook: they become close-on-exec, and `/dev/null` if Nix did not
/// pass them. Also replaces standard output, which is the reply pipe too, by `/dev/null`. Must be
/// called before any file is opened.
pub fn reserve() {
    for fd in NIXS {
        let open = descriptor::set_close_on_exec(fd, true);
        if !open
            && let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")
        {
            use std::os::fd::{AsFd as _, AsRawFd as _};
            if null.as_raw_fd() == fd {
                // The file was opened with the right number. It is leaked deliberately, for the
                // life of the process.
                std::mem::forget(null);
            } else {
                // No other descriptor is replaced, because `fd` is not open.
                let _taken = descriptor::duplicate_to(null.as_fd(), fd);
            }
        }
    }
    RESERVED.store(true, Ordering::Relaxed);
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // If this fails, standard output is not changed. Nothing is printed to it in any case.
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Closes all descriptors except the standard streams, as ssh itself does first. Descriptors that
/// Nix leaks (4 and 5 among them) must not stay open in children. Must be called before any file is
/// opened. If the kernel does not support it, all descriptors stay open; hookrun's own are
/// close-on-exec.
pub fn close_others() {
    const FIRST: u32 = 3;
    descriptor::close_range(FIRST, u32::MAX);
}

/// Replaces the standard streams by `/dev/null`, because another process uses them now.
pub fn release_standard_streams() {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else {
        return;
    };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}

/// Makes `command` end when this process ends. This does not apply to its children.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
    Preparation { dies_with_parent: true, ..Preparation::default() }.add_to(command)
}

/// Makes `command` inherit 4 and 5, and end when this process ends.
pub fn inherit_hook_descriptors(command: &mut Command) -> &mut Command {
    let inherits: &[RawFd] = if RESERVED.load(Ordering::Relaxed) { &NIXS } else { &[] };
    let preparation = Preparation {
        inherits,
        unblocks_signals: true,
        dies_with_parent: true,
        ..Preparation::default()
    };
    preparation.add_to(command)
}
