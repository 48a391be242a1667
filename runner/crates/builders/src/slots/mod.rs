//! Slots of machines, and their assignment to builds.
//!
//! * [`slot_files`]: Nix's own lock files: counts busy slots, and takes a slot.
//! * [`reservations`]: resources besides slots (memory, GPUs, licences).
//! * [`live_file`]: files that are valid while their process lives. [`sessions`]: waiting and
//!   running builds.
//! * [`wait`]: waits for a slot. [`assignment`]: assigns free slots. [`watch`]: wakes waiting
//!   sessions.

pub mod assignment;
pub(crate) mod live_file;
pub mod reservations;
pub mod sessions;
pub mod slot_files;
pub(crate) mod wait;
pub(crate) mod watch;
