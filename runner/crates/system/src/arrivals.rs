//! Tells by name which files are renamed into directories (Linux: inotify(7); nothing on macOS).

pub use crate::os::arrivals::Arrivals;

/// What has happened since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Files that came: the number of the directory, and the name.
    pub files: Vec<(usize, Vec<u8>)>,
    /// More than is told has happened: the directories are to be listed.
    pub more: bool,
    /// The first directory is gone, or is another one now.
    pub gone: bool,
}
