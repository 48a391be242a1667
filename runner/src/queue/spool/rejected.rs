//! Spool files that were no events: kept with their reason, within bounds.
//!
//! Anybody may add to the spool of a system installation, so what is kept of it must not fill the
//! disk: beyond [`MAX_FILES`] files or [`MAX_BYTES`] bytes only the line with the reason is kept,
//! in a log of bounded size.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Files that are kept.
const MAX_FILES: usize = 1000;
/// Their bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Where the reasons of further files go.
const LOG: &str = "more.log";
/// The log is begun anew at this size; one old one is kept.
const MAX_LOG: u64 = 1 << 20;
/// How the file beside a kept one ends.
const REASON: &str = "reason";

/// How many files were set aside and are kept. Each has its reason beside it.
pub fn count(directory: &Path) -> usize {
    files(directory).count()
}

/// Moves `path` into `directory`, with its reason; gives the reason as it may be shown, and whether
/// the file is out of the way.
pub(super) fn set_aside(directory: &Path, path: &Path, reason: &str) -> (String, bool) {
    // The name is anybody's choice, and the reason is shown on terminals.
    let reason = format!("{}: {reason}", path.to_string_lossy().escape_debug());
    match keep(directory, path, &reason) {
        Ok(()) => (reason, true),
        Err(error) => (format!("{reason}; and it cannot be set aside ({error}): remove it"), false),
    }
}

fn files(directory: &Path) -> impl Iterator<Item = std::fs::DirEntry> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_kept = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        let name = name.as_bytes();
        !name.ends_with(REASON.as_bytes()) && !name.starts_with(LOG.as_bytes())
    };
    entries.filter(is_kept)
}

fn keep(directory: &Path, path: &Path, reason: &str) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let size = |found: std::io::Result<std::fs::Metadata>| found.map_or(0, |found| found.len());
    let (count, bytes) = files(directory)
        .fold((0, size(path.symlink_metadata())), |(count, bytes), entry| {
            (count + 1, bytes.saturating_add(size(entry.metadata())))
        });
    if count >= MAX_FILES || bytes > MAX_BYTES {
        note(directory, reason)?;
        return remove(path);
    }
    // Keep of the name what cannot confuse a terminal.
    let name = path.file_name().unwrap_or_default().as_bytes();
    let name: String = String::from_utf8_lossy(name)
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '_' })
        .take(64)
        .collect();
    let target =
        directory.join(format!("{}-{}", crate::event::now_ms(), name.trim_start_matches('.')));
    match std::fs::rename(path, &target) {
        // From the fallback directory, on another file system.
        Err(error)
            if error.kind() == std::io::ErrorKind::CrossesDevices
                && path.is_file()
                && !path.is_symlink() =>
        {
            std::fs::copy(path, &target)?;
            std::fs::remove_file(path)?;
        }
        result => result?,
    }
    std::fs::write(target.with_added_extension(REASON), format!("{reason}\n"))
}

fn note(directory: &Path, reason: &str) -> std::io::Result<()> {
    let path = directory.join(LOG);
    if std::fs::symlink_metadata(&path).is_ok_and(|found| found.len() > MAX_LOG) {
        std::fs::rename(&path, path.with_added_extension("1"))?;
    }
    let mut options = OpenOptions::new();
    let mut log: File =
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    writeln!(log, "{reason}")
}

fn remove(path: &Path) -> std::io::Result<()> {
    let is_directory = path.symlink_metadata()?.is_dir();
    if is_directory { std::fs::remove_dir(path) } else { std::fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bounds_only_reasons_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, kept) = (dir.path().join("spool"), dir.path().join("rejected"));
        std::fs::create_dir(&spool).unwrap();
        let put = |name: &str, size: u64| {
            let path = spool.join(name);
            File::create(&path).unwrap().set_len(size).unwrap();
            assert_eq!(set_aside(&kept, &path, "odd"), (format!("{}: odd", path.display()), true));
            assert!(!path.exists());
        };
        put("first", MAX_BYTES);
        assert_eq!(count(&kept), 1);
        put("second", 1);
        assert_eq!(count(&kept), 1);
        let log = std::fs::read_to_string(kept.join(LOG)).unwrap();
        assert!(log.ends_with("spool/second: odd\n") && log.lines().count() == 1, "{log}");
    }
}
