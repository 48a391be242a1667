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
use hookrun_nix::machines::MachineLine;

/// A parameter that every store of every Nix since 2.0 takes (`libstore/store-api.hh`) and that
/// changes nothing for a hook, which asks for a path once.
const NEUTRAL: &str = "path-info-cache-size";
/// Its default. The number of the slot is added: what is exclusive by the slot is then exclusive by
/// the other name too.
const NEUTRAL_DEFAULT: u32 = 65536;
/// The longest name of a file on Linux (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// The end of the longest name that Nix's own hook makes of a URI.
const UPLOAD_LOCK: &str = ".upload-lock";
/// Shorter URIs stay short enough, whatever is added.
const SHORT_URI: usize = 150;

/// A slot that this process holds. Dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    _files: Vec<OwnedFd>,
    number: u32,
    /// Does Nix's own hook take a slot of another name beside it?
    renames: bool,
}

/// What came of taking one.
#[derive(Debug)]
pub enum Taken {
    /// Here it is.
    Slot(Slot),
    /// All are busy.
    Full,
    /// The lock files cannot be used: only Nix's own hook can tell.
    Unknown,
}

impl SlotFiles {
    /// Takes a free slot of `uri`.
    pub fn take(&self, uri: &str, slots: u32) -> Taken {
        if self.make().is_err() {
            return Taken::Unknown;
        }
        let _quiet = self.while_nobody_looks();
        let own = own_name(uri);
        let renames = own.is_none();
        if !renames && self.load_now(uri, slots) >= slots {
            return Taken::Full;
        }
        let names = own.map_or_else(|| file_names(uri), |own| vec![own]);
        for number in 0..slots {
            let lock = |name: &String| self.lock(&format!("{name}-{number}"));
            match names.iter().map(lock).collect::<io::Result<Option<Vec<OwnedFd>>>>() {
                Ok(Some(files)) => return Taken::Slot(Slot { _files: files, number, renames }),
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
        if !slot.renames {
            return;
        }
        for name in file_names(&slot.uri(&machine.uri)) {
            for end in ["-0", UPLOAD_LOCK] {
                let _gone = std::fs::remove_file(self.directory().join(format!("{name}{end}")));
            }
        }
    }
}

impl Slot {
    /// The machine for Nix's own hook: under the other name, with one slot, where it can have one.
    pub fn line(&self, machine: &MachineLine) -> MachineLine {
        if self.renames {
            MachineLine { uri: self.uri(&machine.uri).into(), max_jobs: 1, ..machine.clone() }
        } else {
            machine.clone()
        }
    }

    /// The URI for Nix's own hook.
    pub fn uri(&self, uri: &str) -> String {
        if self.renames { renamed(uri, self.number) } else { uri.to_owned() }
    }
}

fn renamed(uri: &str, number: u32) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}{NEUTRAL}={}", u64::from(NEUTRAL_DEFAULT) + u64::from(number))
}

/// The name of hookrun's own lock files, without the number, for a machine whose URI leaves no room
/// for another parameter in the name of a file, or has that parameter already.
pub(super) fn own_name(uri: &str) -> Option<String> {
    let has_room = || {
        let fits = |name: &String| name.len() + UPLOAD_LOCK.len() <= MAX_NAME;
        uri.len() <= SHORT_URI || file_names(&renamed(uri, u32::MAX)).iter().all(fits)
    };
    let renames = !uri.contains(NEUTRAL) && has_room();
    (!renames).then(|| format!("hookrun-{}", blake3::hash(uri.as_bytes()).to_hex()))
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
        hookrun_nix::machines::parse(&format!("{uri} x86_64-linux - 4"), "x86_64-linux")
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
        assert!(matches!(
            SlotFiles::below(std::path::Path::new("/proc/nowhere")).take("ssh://m", 1),
            Taken::Unknown
        ));
    }

    /// A URI as long as the name of an upload lock allows, one that has the parameter already, and
    /// one that is only just too long.
    fn without_room() -> [String; 3] {
        let long = |length: usize| format!("ssh://m?ssh-key=/{}", "k".repeat(length - 17));
        [long(MAX_NAME - UPLOAD_LOCK.len()), "ssh://m?path-info-cache-size=1".to_owned(), long(212)]
    }

    #[test]
    fn a_uri_without_room_for_another_name_keeps_its_own() {
        for uri in without_room() {
            let state = tempfile::tempdir().unwrap();
            let files = SlotFiles::below(state.path());
            let Taken::Slot(first) = files.take(&uri, 2) else { panic!("no slot of {uri}") };
            assert_eq!(first.line(&line(&uri)), line(&uri));
            let Taken::Slot(second) = files.take(&uri, 2) else { panic!("no slot of {uri}") };
            assert!(matches!(files.take(&uri, 2), Taken::Full));
            assert_eq!(files.loads([(uri.as_str(), 2)]), [2], "before Nix's own hook has begun");
            // Nix's own hook takes the first slot that it finds, which may be another.
            let by_nix = |number: u32| {
                let name = format!("{}-{number}", file_names(&uri)[0]);
                files.lock(&name).unwrap().unwrap()
            };
            let of_second = by_nix(0);
            assert_eq!(files.loads([(uri.as_str(), 2)]), [2]);
            drop(first);
            assert_eq!(files.loads([(uri.as_str(), 2)]), [1], "a build counts once");
            drop(second);
            // Other commands build without hookrun.
            let _other = by_nix(1);
            assert!(matches!(files.take(&uri, 2), Taken::Full));
            drop(of_second);
            assert!(matches!(files.take(&uri, 2), Taken::Slot(_)));
        }
    }

    #[test]
    fn names_fit_whatever_the_length() {
        for length in 20..300 {
            let uri = format!("/{}", "d".repeat(length));
            let longest = file_names(&renamed(&uri, u32::MAX))
                .iter()
                .map(|name| name.len() + UPLOAD_LOCK.len())
                .max();
            assert_eq!(own_name(&uri).is_none(), longest.unwrap() <= MAX_NAME, "{length}");
        }
    }

    #[test]
    fn another_name_for_the_same_machine() {
        let slot = Slot { _files: Vec::new(), number: 3, renames: true };
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
