//! What a child process does between fork and exec.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::{descriptor, os, signals};

/// First descriptor after the standard streams.
pub(crate) const FIRST_OTHER: u32 = 3;

/// The preparation of a child; [`Preparation::add_to`] adds it to a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Preparation {
    /// Whether the child leads its own session.
    pub session: bool,
    /// Whether the child inherits only the standard streams.
    pub closes_others: bool,
    /// Descriptors that the child inherits, although they are otherwise closed on exec.
    pub inherits: &'static [RawFd],
    /// Whether all signals are unblocked in the child, independent of this thread.
    pub unblocks_signals: bool,
    /// Whether the child is killed when the thread that started it ends. Its own children are not.
    /// Linux only.
    pub dies_with_parent: bool,
}

impl Preparation {
    /// Adds the preparation to `command`.
    pub fn add_to(self, command: &mut Command) -> &mut Command {
        let parent = rustix::process::getpid();
        let before_exec = move || -> io::Result<()> {
            if self.session {
                // It fails only for the leader of a group, which a new process is not.
                let _session = rustix::process::setsid();
            }
            if self.closes_others {
                // They are closed at exec, not now, so that a failed exec can still be reported.
                os::close_on_exec_from(FIRST_OTHER)?;
            }
            for number in self.inherits {
                descriptor::set_close_on_exec(*number, false);
            }
            if self.unblocks_signals {
                signals::unblock();
            }
            if self.dies_with_parent {
                os::die_with(parent)?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
        // allowed: it makes system calls on numbers, allocates nothing and takes no lock.
        unsafe { command.pre_exec(before_exec) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a descriptor that no other test uses.
    const NUMBER: RawFd = 250;

    fn output(preparation: Preparation, script: &str) -> String {
        let mut command = Command::new("/bin/sh");
        let output = preparation.add_to(command.args(["-c", script])).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn a_child_inherits_only_the_named_descriptors() {
        let file = std::fs::File::open("/").unwrap();
        descriptor::duplicate_to(std::os::fd::AsFd::as_fd(&file), NUMBER).unwrap();
        let script = "test -e /dev/fd/250 && echo open || echo closed";
        assert_eq!(output(Preparation::default(), script), "closed");
        let inherits = Preparation { inherits: &[NUMBER], ..Preparation::default() };
        assert_eq!(output(inherits, script), "open");
        descriptor::set_close_on_exec(NUMBER, false);
        assert_eq!(output(Preparation::default(), script), "open");
        let closes = Preparation { closes_others: true, ..Preparation::default() };
        assert_eq!(output(closes, script), "closed");
    }
}
