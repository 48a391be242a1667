//! Tells which files of directories are closed after writing (Linux: inotify(7); nothing on macOS).

pub use crate::os::closings::Closings;
