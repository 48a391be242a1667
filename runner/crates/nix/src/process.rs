//! The file descriptors Nix gives its build hook, and children that inherit them.
//!
//! Nix gives 0 (requests), 1 and 2 (one pipe: replies, log), 4 (writing end of the build log) and 5
//! (its reading end; Nix's own hook collects ssh's complaints there). The end of a build is the end
//! of 2 or of 4, so neither may leak into a process that outlives the build, and no file of ours
//! may ever take the number 4 or 5.

use std::os::fd::RawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hookrun_system::child::Preparation;
use hookrun_system::descriptor;

/// The descriptors that Nix's own hook expects besides the standard ones.
const NIXS: [RawFd; 2] = [4, 5];

/// Has [`reserve`] been called? If not, 4 and 5 may be anything of ours, and no child may have
/// them.
static RESERVED: AtomicBool = AtomicBool::new(false);

/// Keeps 4 and 5 for Nix's own hook: closed on exec from now on, and taken by `/dev/null` where Nix
/// did not give them. Turns standard output, which is the reply pipe too, into `/dev/null`. To be
/// called before anything is opened.
pub fn reserve() {
    for fd in NIXS {
        let open = descriptor::set_close_on_exec(fd, true);
        if !open
            && let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")
        {
            use std::os::fd::{AsFd as _, AsRawFd as _};
            if null.as_raw_fd() == fd {
                // Opened right there: it stays. Leaked on purpose, for the life of the process.
                std::mem::forget(null);
            } else {
                // Nobody else's descriptor is replaced: `fd` is not open.
                let _taken = descriptor::duplicate_to(null.as_fd(), fd);
            }
        }
    }
    RESERVED.store(true, Ordering::Relaxed);
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // Where it fails, standard output stays what it is, and nothing prints there anyway.
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Closes all but the standard streams, as ssh itself does first: what Nix leaks to it (4 and 5
/// among it) must not stay open in what it starts. To be called before anything is opened. Where
/// the kernel cannot do it everything stays open, as everything of ours is close-on-exec.
pub fn close_others() {
    const FIRST: u32 = 3;
    descriptor::close_range(FIRST, u32::MAX);
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
    Preparation { dies_with_parent: true, ..Preparation::default() }.add_to(command)
}

/// Makes `command` inherit 4 and 5, and die when this process dies.
pub fn bequeath(command: &mut Command) -> &mut Command {
    let inherits: &[RawFd] = if RESERVED.load(Ordering::Relaxed) { &NIXS } else { &[] };
    let preparation = Preparation {
        inherits,
        unblocks_signals: true,
        dies_with_parent: true,
        ..Preparation::default()
    };
    preparation.add_to(command)
}
