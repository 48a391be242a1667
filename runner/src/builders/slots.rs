//! Takes slots of machines: the same lock files that Nix's own hook takes, so that both see each
//! other's builds.
//!
//! A session holds its slot itself, from before it connects until it ends, so no other session and
//! no other Nix can take it in between. Nix's own hook, which the session then starts, wants a slot
//! too; it gets one of another name, by a URI that means the same ([`Slot::line`]).

use std::io;

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::load::{SlotFiles, file_names};
use crate::nix::machines::MachineLine;

/// A parameter that every store of every Nix since 2.0 takes (`libstore/store-api.hh`) and that
/// changes nothing for a hook, which asks for a path once.
const NEUTRAL: &str = "path-info-cache-size";
/// Its default. The number of the slot is added: what is exclusive by the slot is then exclusive by
/// the other name too.
const NEUTRAL_DEFAULT: u32 = 65536;

/// A slot that this process holds. Dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    _files: Vec<OwnedFd>,
    number: u32,
}

/// What came of taking one.
#[derive(Debug)]
pub enum Taken {
    /// Here it is.
    Slot(Slot),
    /// All are busy.
    Full,
    /// The lock files cannot be used, or this URI cannot be changed: only Nix's own hook can tell.
    Unknown,
}

impl SlotFiles {
    /// Takes a free slot of `uri`.
    pub fn take(&self, uri: &str, slots: u32) -> Taken {
        if uri.contains(NEUTRAL) || self.make().is_err() {
            return Taken::Unknown;
        }
        let _quiet = self.while_nobody_looks();
        let names = file_names(uri);
        for number in 0..slots {
            let lock = |name: &String| self.lock(&format!("{name}-{number}"));
            match names.iter().map(lock).collect::<io::Result<Option<Vec<OwnedFd>>>>() {
                Ok(Some(files)) => return Taken::Slot(Slot { _files: files, number }),
                Ok(None) => {}
                Err(_) => return Taken::Unknown,
            }
        }
        Taken::Full
    }

    /// `None` if it is held.
    fn lock(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        // As `openLockFile` (`libutil`, pathlocks) opens it.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(self.directory().join(name), flags, Mode::from_raw_mode(0o600))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the lock files that Nix's own hook made for [`Slot::line`].
    pub fn forget(&self, machine: &MachineLine, slot: &Slot) {
        for name in file_names(&slot.uri(&machine.uri)) {
            for end in ["-0", ".upload-lock"] {
                let _gone = std::fs::remove_file(self.directory().join(format!("{name}{end}")));
            }
        }
    }
}

impl Slot {
    /// The machine for Nix's own hook, under the other name, with one slot.
    pub fn line(&self, machine: &MachineLine) -> MachineLine {
        MachineLine { uri: self.uri(&machine.uri).into(), max_jobs: 1, ..machine.clone() }
    }

    /// The other name.
    pub fn uri(&self, uri: &str) -> String {
        let separator = if uri.contains('?') { '&' } else { '?' };
        format!("{uri}{separator}{NEUTRAL}={}", NEUTRAL_DEFAULT + self.number)
    }
}

/// May the closing of a file with this name mean that a slot is free? Not if Nix's own hook has
/// made it for itself.
pub fn may_be_slot(name: &[u8]) -> bool {
    let contains = |part: &str| name.windows(part.len()).any(|window| window == part.as_bytes());
    !contains(NEUTRAL) && !name.ends_with(b"-lock") && !name.starts_with(b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(uri: &str) -> MachineLine {
        crate::nix::machines::parse(&format!("{uri} x86_64-linux - 4"), "x86_64-linux")
            .machines
            .remove(0)
    }

    #[test]
    fn slots_are_taken_and_freed() {
        let state = tempfile::tempdir().unwrap();
        let files = SlotFiles::below(state.path());
        let take = |slots| files.take("ssh://m", slots);
        let Taken::Slot(first) = take(2) else { unreachable!() };
        let Taken::Slot(second) = take(2) else { unreachable!() };
        assert!(matches!(take(2), Taken::Full));
        assert_eq!(files.loads([("ssh://m", 2)]), [2], "as others see it");
        assert_eq!((first.number, second.number), (0, 1));
        drop(first);
        assert_eq!(files.loads([("ssh://m", 2)]), [1]);
        let Taken::Slot(again) = take(2) else { unreachable!() };
        assert_eq!(again.number, 0);
        assert!(matches!(files.take("ssh://m?path-info-cache-size=1", 1), Taken::Unknown));
        assert!(matches!(
            SlotFiles::below(std::path::Path::new("/proc/nowhere")).take("ssh://m", 1),
            Taken::Unknown
        ));
    }

    #[test]
    fn another_name_for_the_same_machine() {
        let slot = Slot { _files: Vec::new(), number: 3 };
        let renamed = slot.line(&line("ssh://m"));
        assert_eq!(
            (renamed.uri.as_str(), renamed.max_jobs),
            ("ssh://m?path-info-cache-size=65539", 1)
        );
        assert_eq!(
            slot.uri("ssh://m?compress=true"),
            "ssh://m?compress=true&path-info-cache-size=65539"
        );
        assert!(!may_be_slot(b"ssh:__m?path-info-cache-size=65539-0"));
        assert!(!may_be_slot(b"main-lock") && !may_be_slot(b"ssh:__m.upload-lock"));
        assert!(may_be_slot(b"ssh:__m-0"));
    }
}
