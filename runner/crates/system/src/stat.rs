//! Numbers of `stat(2)`, whose types differ between operating systems.

use rustix::fs::{Mode, RawMode, Stat};

/// A mode from its number, such as `0o755`.
pub fn mode(number: u32) -> Mode {
    // No bit of a mode is above the sixteen that every system has.
    Mode::from_raw_mode(RawMode::try_from(number & 0o7777).unwrap_or_default())
}

/// The mode and type of a file as a number.
#[allow(clippy::useless_conversion, reason = "the type differs between systems")]
pub fn mode_of(stat: &Stat) -> u32 {
    u32::from(stat.st_mode)
}

/// The number of a device, as in [`identity_of`].
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_fallible_conversions,
    reason = "the type differs between systems"
)]
pub fn device(major: u32, minor: u32) -> u64 {
    u64::try_from(rustix::fs::makedev(major, minor)).unwrap_or_default()
}

/// Device and inode: which file it is.
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_fallible_conversions,
    reason = "the type differs between systems"
)]
pub fn identity_of(stat: &Stat) -> (u64, u64) {
    (u64::try_from(stat.st_dev).unwrap_or_default(), u64::from(stat.st_ino))
}
