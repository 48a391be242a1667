//! Spool files that were no events: kept with their reason, within bounds.
//!
//! Anybody may add to the spool of a system installation, so what is kept of it must not fill the
//! disk: beyond [`MAX_FILES`] files or [`MAX_BYTES`] bytes only the line with the reason is kept,
//! in a log of bounded size.

use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, RenameFlags};

use hookrun_nix::layout::{self, Directory, Use};
use hookrun_nix::terminal::printable;

/// Files that are kept.
const MAX_FILES: usize = 1000;
/// Their bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Where the reasons of further files go.
const LOG: &str = "more.log";
/// The log before.
const OLD_LOG: &str = "more.log.1";
/// The log is begun anew at this size; one old one is kept.
const MAX_LOG: u64 = 1 << 20;
/// How the file beside a kept one ends.
const REASON: &str = ".reason";
/// Characters kept of a file's name.
const MAX_NAME: usize = 64;
/// Names tried for a file, if others are taken.
const MAX_TRIES: u32 = 10_000;
/// Entries of a directory that are removed at once.
const MAX_EMPTIED: usize = 256;
/// What is kept is counted again after this long: people remove files.
const COUNTED_FOR: Duration = Duration::from_mins(1);

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How many files were set aside and are kept. Each has its reason beside it.
pub fn count(directory: &Path) -> usize {
    Directory::open(directory, Use::List)
        .map_or(0, |directory| directory.names().filter(|name| is_kept(name)).count())
}

fn is_kept(name: &[u8]) -> bool {
    !name.ends_with(REASON.as_bytes()) && !name.starts_with(LOG.as_bytes())
}

/// What happened to a file that is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is out of the way.
    Gone,
    /// A large directory, of which a part is removed. The rest is next.
    Smaller,
    /// It can be neither moved nor removed.
    Stays,
}

/// The directory of what is set aside.
#[derive(Debug)]
pub(super) struct Rejected {
    path: PathBuf,
    counted: Option<Counted>,
}

#[derive(Debug)]
struct Counted {
    directory: Directory,
    files: usize,
    bytes: u64,
    when: Instant,
}

impl Rejected {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, counted: None }
    }

    /// Moves a file of `from` here, with its reason. Returns the reason as it may be shown, and
    /// what became of the file.
    pub(super) fn set_aside(
        &mut self,
        from: &Directory,
        name: &[u8],
        reason: &str,
    ) -> (String, Fate) {
        // The name is anybody's choice, words of the file are in the reason, and both are shown on
        // terminals.
        let path = from.path().join(String::from_utf8_lossy(name).as_ref());
        let reason = printable(&format!("{}: {reason}", path.display()));
        match self.keep(from, name, &reason) {
            Ok(fate) => (reason, fate),
            Err(error) => {
                self.counted = None;
                (format!("{reason}; and it cannot be set aside ({error}): remove it"), Fate::Stays)
            }
        }
    }

    fn keep(&mut self, from: &Directory, name: &[u8], reason: &str) -> std::io::Result<Fate> {
        let stat = match from.stat_of(name) {
            Err(rustix::io::Errno::NOENT) => return Ok(Fate::Gone),
            result => result?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let counted = self.counted()?;
        if counted.files >= MAX_FILES || counted.bytes.saturating_add(size) > MAX_BYTES {
            return counted.remove(from, name, kind, reason);
        }
        let kept = counted.take(from, name, kind)?;
        let Some(kept) = kept else {
            return counted.remove(from, name, kind, reason);
        };
        counted.files += 1;
        counted.bytes = counted.bytes.saturating_add(size);
        let mut beside =
            counted.directory.create(format!("{kept}{REASON}").as_bytes(), FILE_MODE)?;
        beside.write_all(format!("{reason}\n").as_bytes())?;
        Ok(Fate::Gone)
    }

    fn counted(&mut self) -> std::io::Result<&mut Counted> {
        let fresh = self.counted.take().filter(|counted| counted.when.elapsed() < COUNTED_FOR);
        let counted = match fresh {
            Some(counted) => counted,
            None => self.count()?,
        };
        Ok(self.counted.insert(counted))
    }

    fn count(&self) -> std::io::Result<Counted> {
        layout::make(&self.path, DIRECTORY_MODE)?;
        let directory = Directory::open(&self.path, Use::List)?;
        let (mut files, mut bytes) = (0, 0_u64);
        for name in directory.names().filter(|name| is_kept(name)) {
            files += 1;
            let size = directory.stat_of(&name).map_or(0, |stat| stat.st_size);
            bytes = bytes.saturating_add(u64::try_from(size).unwrap_or(0));
        }
        Ok(Counted { directory, files, bytes, when: Instant::now() })
    }
}

impl Counted {
    /// Removes what is not kept, and notes the reason.
    fn remove(
        &self,
        from: &Directory,
        name: &[u8],
        kind: FileType,
        reason: &str,
    ) -> std::io::Result<Fate> {
        let is_gone = match kind {
            FileType::Directory => remove_directory(from, name)?,
            _ => from.remove(name).map(|()| true)?,
        };
        if !is_gone {
            return Ok(Fate::Smaller);
        }
        note(&self.directory, reason)?;
        Ok(Fate::Gone)
    }

    /// Moves the file under a name that nothing here has yet; none if it can only be removed.
    fn take(
        &self,
        from: &Directory,
        name: &[u8],
        kind: FileType,
    ) -> std::io::Result<Option<String>> {
        // Of the name what cannot confuse a terminal.
        let plain: String = String::from_utf8_lossy(name)
            .chars()
            .map(|c| if c.is_ascii_graphic() { c } else { '_' })
            .take(MAX_NAME)
            .collect();
        let now = hookrun_nix::event::now_ms();
        for number in 0..MAX_TRIES {
            let target = format!("{now}-{number}-{}", plain.trim_start_matches('.'));
            match self.take_as(from, name, kind, &target) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Ok(true) => return Ok(Some(target)),
                Ok(false) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn take_as(
        &self,
        from: &Directory,
        name: &[u8],
        kind: FileType,
        target: &str,
    ) -> std::io::Result<bool> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(from, name, &self.directory, target, flags) {
            Ok(()) => Ok(true),
            // From a fallback on another file system.
            Err(rustix::io::Errno::XDEV) if kind == FileType::RegularFile => {
                let (file, _) = from.read(name)?;
                let mut copy = self.directory.create(target.as_bytes(), FILE_MODE)?;
                std::io::copy(&mut file.take(MAX_BYTES), &mut copy)?;
                from.remove(name)?;
                Ok(true)
            }
            Err(rustix::io::Errno::XDEV) => Ok(false),
            // A file system without this flag. Nobody else makes files here.
            Err(rustix::io::Errno::INVAL) => match self.directory.stat_of(target.as_bytes()) {
                Err(rustix::io::Errno::NOENT) => {
                    from.rename(name, &self.directory, target.as_bytes()).map(|()| true)
                }
                Ok(_) => Err(ErrorKind::AlreadyExists.into()),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

fn note(directory: &Directory, reason: &str) -> std::io::Result<()> {
    let size = directory.stat_of(LOG.as_bytes()).map_or(0, |stat| stat.st_size);
    if u64::try_from(size).unwrap_or(0) > MAX_LOG {
        directory.rename(LOG.as_bytes(), directory, OLD_LOG.as_bytes())?;
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW;
    let log = rustix::fs::openat(
        directory,
        LOG,
        flags | OFlags::CLOEXEC,
        hookrun_system::stat::mode(FILE_MODE),
    )?;
    std::fs::File::from(log).write_all(format!("{reason}\n").as_bytes())
}

/// Removes a directory with what is in it, or some of that: false if something is left. Directories
/// below it are moved up into `from`, so that neither depth nor size takes memory or descriptors.
fn remove_directory(from: &Directory, name: &[u8]) -> std::io::Result<bool> {
    let (mut names, mut room) = (vec![name.to_vec()], MAX_EMPTIED);
    while let Some(name) = names.pop() {
        if removed(from.remove_directory(&name))? {
            continue;
        }
        let directory = from.below(&name)?;
        for entry in directory.names().take(room) {
            room -= 1;
            match directory.remove(&entry) {
                Err(error) if error.kind() == ErrorKind::IsADirectory => {
                    if removed(directory.remove_directory(&entry))? {
                        continue;
                    }
                    let above = format!("removed-{}", uuid::Uuid::now_v7()).into_bytes();
                    directory.rename(&entry, from, &above)?;
                    names.push(above);
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if !removed(from.remove_directory(&name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Is the directory gone? False if something is in it.
fn removed(result: std::io::Result<()>) -> std::io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        spool: Directory,
        rejected: Rejected,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("spool");
            std::fs::create_dir(&path).unwrap();
            let spool = Directory::open(&path, Use::List).unwrap();
            let rejected = Rejected::new(dir.path().join("rejected"));
            Self { dir, spool, rejected }
        }

        fn set_aside(&mut self, name: &str, size: u64) {
            let path = self.spool.path().join(name);
            File::create(&path).unwrap().set_len(size).unwrap();
            let (reason, fate) = self.rejected.set_aside(&self.spool, name.as_bytes(), "odd");
            assert!(fate == Fate::Gone && reason.ends_with(": odd"), "{reason}");
            assert!(!path.exists());
        }

        fn kept(&self) -> usize {
            count(&self.dir.path().join("rejected"))
        }
    }

    #[test]
    fn beyond_the_bounds_only_reasons_are_kept() {
        let mut scene = Scene::new();
        scene.set_aside("first", MAX_BYTES);
        assert_eq!(scene.kept(), 1);
        scene.set_aside("second", 1);
        assert_eq!(scene.kept(), 1);
        let log = std::fs::read_to_string(scene.dir.path().join("rejected").join(LOG)).unwrap();
        assert!(log.ends_with("spool/second: odd\n") && log.lines().count() == 1, "{log}");
    }

    #[test]
    fn files_of_one_millisecond_and_one_plain_name_do_not_replace_each_other() {
        let mut scene = Scene::new();
        for number in 0..50 {
            let other = char::from_u32(0x100 + number).unwrap();
            scene.set_aside(&format!("x{other}"), 1);
        }
        assert_eq!(scene.kept(), 50);
    }

    #[test]
    fn no_character_that_a_terminal_obeys_is_in_a_reason() {
        let mut scene = Scene::new();
        let name = "a\u{7f}\u{9b}\u{2028}\u{202e}\u{1b}";
        std::fs::write(scene.spool.path().join(name), "").unwrap();
        let (shown, _) =
            scene.rejected.set_aside(&scene.spool, name.as_bytes(), "word \u{9b}\u{202e}\u{7f}");
        let reasons = std::fs::read_dir(scene.dir.path().join("rejected")).unwrap();
        let mut kept = reasons.map(|entry| entry.unwrap().path());
        let reason = kept.find(|path| path.to_string_lossy().ends_with(REASON)).unwrap();
        let text = std::fs::read_to_string(reason).unwrap();
        for text in [shown.as_str(), text.trim_end_matches('\n')] {
            assert!(!text.chars().any(hookrun_nix::terminal::obeyed), "{text:?}");
        }
    }
}
