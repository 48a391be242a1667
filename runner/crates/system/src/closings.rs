//! Reports which files in directories are closed after writing (inotify(7); not available on
//! macOS).

pub use crate::os::closings::Closings;
