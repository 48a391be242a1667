//! Rejected spool files, which are kept with their reasons, in limited number and size.
//!
//! Every user may add files to the spool of a system installation, so rejected files must not fill
//! the disk. Beyond [`MAX_FILES`] files or [`MAX_BYTES`] bytes, only the reason is recorded, in a
//! log of limited size.

use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, RenameFlags};

use hookrun_nix::layout::{self, Directory, Use};
use hookrun_nix::terminal::printable;

/// The maximum number of files that are kept.
const MAX_FILES: usize = 1000;
/// The maximum total size of the files, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// The log with the reasons of further files.
const LOG: &str = "more.log";
/// The previous log.
const OLD_LOG: &str = "more.log.1";
/// The size at which a new log is started; one old log is kept.
const MAX_LOG: u64 = 1 << 20;
/// The suffix of the file with the reason.
const REASON: &str = ".reason";
/// The number of characters that are kept of a file's name.
const MAX_NAME: usize = 64;
/// The number of names that are tried for a file if others exist.
const MAX_TRIES: u32 = 10_000;
/// The number of entries of a directory that are removed in one call.
const MAX_EMPTIED: usize = 256;
/// The time after which the files are counted again, because users remove files.
const COUNTED_FOR: Duration = Duration::from_mins(1);

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Returns the number of rejected files that are kept. Each has a file with its reason.
pub fn count(directory: &Path) -> usize {
    Directory::open(directory, Use::List)
        .map_or(0, |directory| directory.names().filter(|name| is_kept(name)).count())
}

fn is_kept(name: &[u8]) -> bool {
    !name.ends_with(REASON.as_bytes()) && !name.starts_with(LOG.as_bytes())
}

/// What happened to a file that is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RejectResult {
    /// It was moved or removed.
    Gone,
    /// It is a large directory, of which a part was removed. The rest follows in the next call.
    Smaller,
    /// It can neither be moved nor removed.
    Stays,
}

/// The directory of rejected files.
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

    /// Moves a file of `from` to this directory, with its reason. Returns the printable reason, and
    /// what happened to the file.
    pub(super) fn set_aside(
        &mut self,
        from: &Directory,
        name: &[u8],
        reason: &str,
    ) -> (String, RejectResult) {
        // Every user can choose the name, the reason may contain words of the file, and both are
        // shown on terminals.
        let path = from.path().join(String::from_utf8_lossy(name).as_ref());
        let reason = printable(&format!("{}: {reason}", path.display()));
        match self.keep(from, name, &reason) {
            Ok(fate) => (reason, fate),
            Err(error) => {
                self.counted = None;
                (
                    format!("{reason}; it cannot be moved away ({error}), so remove it"),
                    RejectResult::Stays,
                )
            }
        }
    }

    fn keep(
        &mut self,
        from: &Directory,
        name: &[u8],
        reason: &str,
    ) -> std::io::Result<RejectResult> {
        let stat = match from.stat_of(name) {
            Err(rustix::io::Errno::NOENT) => return Ok(RejectResult::Gone),
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
        Ok(RejectResult::Gone)
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
    /// Removes a file that is not kept, and records the reason.
    fn remove(
        &self,
        from: &Directory,
        name: &[u8],
        kind: FileType,
        reason: &str,
    ) -> std::io::Result<RejectResult> {
        let is_gone = match kind {
            FileType::Directory => remove_directory(from, name)?,
            _ => from.remove(name).map(|()| true)?,
        };
        if !is_gone {
            return Ok(RejectResult::Smaller);
        }
        note(&self.directory, reason)?;
        Ok(RejectResult::Gone)
    }

    /// Moves the file to a name that does not exist here yet; returns none if it can only be
    /// removed.
    fn take(
        &self,
        from: &Directory,
        name: &[u8],
        kind: FileType,
    ) -> std::io::Result<Option<String>> {
        // Only characters that are safe on a terminal are kept in the name.
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
            // The file comes from a fallback on another file system.
            Err(rustix::io::Errno::XDEV) if kind == FileType::RegularFile => {
                let (file, _) = from.read(name)?;
                let mut copy = self.directory.create(target.as_bytes(), FILE_MODE)?;
                std::io::copy(&mut file.take(MAX_BYTES), &mut copy)?;
                from.remove(name)?;
                Ok(true)
            }
            Err(rustix::io::Errno::XDEV) => Ok(false),
            // The file system does not support this flag. Nobody else creates files here.
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

/// Removes a directory with its contents, or a part of them; returns false if something is left.
/// Nested directories are moved up into `from`, so that neither depth nor size needs memory or
/// descriptors.
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

/// Returns whether the directory was removed; false if it is not empty.
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
            assert!(fate == RejectResult::Gone && reason.ends_with(": odd"), "{reason}");
            assert!(!path.exists());
        }

        fn kept(&self) -> usize {
            count(&self.dir.path().join("rejected"))
        }
    }

    #[test]
    fn beyond_the_limits_only_reasons_are_kept() {
        let mut scene = Scene::new();
        scene.set_aside("first", MAX_BYTES);
        assert_eq!(scene.kept(), 1);
        scene.set_aside("second", 1);
        assert_eq!(scene.kept(), 1);
        let log = std::fs::read_to_string(scene.dir.path().join("rejected").join(LOG)).unwrap();
        assert!(log.ends_with("spool/second: odd\n") && log.lines().count() == 1, "{log}");
    }

    #[test]
    fn files_with_equal_time_and_printable_name_do_not_replace_each_other() {
        let mut scene = Scene::new();
        for number in 0..50 {
            let other = char::from_u32(0x100 + number).unwrap();
            scene.set_aside(&format!("x{other}"), 1);
        }
        assert_eq!(scene.kept(), 50);
    }

    #[test]
    fn reasons_contain_only_printable_characters() {
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
