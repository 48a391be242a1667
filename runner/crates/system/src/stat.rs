//! Numbers of `stat(2)`, whose types differ between operating systems.

use rustix::fs::{Mode, RawMode, Stat};

/// Returns the mode with this number, such as `0o755`.
pub fn mode(number: u32) -> Mode {
    // The bits of a mode fit into the 16 bits that every system has.
    Mode::from_raw_mode(RawMode::try_from(number & 0o7777).unwrap_or_default())
}

/// Returns the mode and type of a file as a number.
#[allow(clippy::useless_conversion, reason = "the type differs between systems")]
pub fn mode_of(stat: &Stat) -> u32 {
    u32::from(stat.st_mode)
}

/// Returns the number of a device, as in [`identity_of`].
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_fallible_conversions,
    reason = "the type differs between systems"
)]
pub fn device(major: u32, minor: u32) -> u64 {
    u64::try_from(rustix::fs::makedev(major, minor)).unwrap_or_default()
}

/// Returns device and inode, which identify a file.
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_fallible_conversions,
    reason = "the type differs between systems"
)]
pub fn identity_of(stat: &Stat) -> (u64, u64) {
    (u64::try_from(stat.st_dev).unwrap_or_default(), u64::from(stat.st_ino))
}
