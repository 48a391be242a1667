//! The functions of the operating system that hookrun needs beyond the standard library and rustix:
//! the sandbox, processes, descriptors, files in memory, users.
//!
//! * [`wall`]: the sandbox of a process that runs guests.
//! * [`child`]: prepares a child process between fork and exec.
//! * [`process`]: other processes, and changes to this one; [`signals`].
//! * [`descriptor`]: open files by number; [`directory`]: changes entries through the C library.
//! * [`arrivals`], [`closings`]: events in directories.
//! * [`memory`]: files in memory. [`stat`]: numbers whose types differ.
//!
//! Code that differs between operating systems is in `linux/` and `macos/`, which have the same
//! functions; docs/platforms.md lists what macOS lacks. All unsafe code of the program is in this
//! crate, except for calls of two library functions with their own contracts: mapping compiled
//! plugins (`hookrun-host`) and registering a descriptor with tokio (`hookrun-queue`).

#![expect(unsafe_code, reason = "this crate wraps the system calls that rustix does not")]

pub mod arrivals;
pub mod child;
pub mod closings;
pub mod descriptor;
pub mod directory;
#[cfg(all(target_os = "linux", feature = "escape-drill"))]
pub mod drill;
pub mod memory;
pub mod process;
pub mod signals;
pub mod stat;
pub mod wall;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod os;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("hookrun runs on Linux and macOS");
