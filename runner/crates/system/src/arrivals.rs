//! Reports by name which files are renamed into directories (inotify(7); not available on macOS).

pub use crate::os::arrivals::Arrivals;

/// What has happened since the last call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Files that arrived: the number of the directory, and the name.
    pub files: Vec<(usize, Vec<u8>)>,
    /// Events were lost: the caller must list the directories.
    pub more: bool,
    /// The first directory was removed or replaced.
    pub gone: bool,
}
