//! Slots of machines, and who gets them.
//!
//! * [`slot_files`]: Nix's own lock files: how many slots are busy, and taking one.
//! * [`reservations`]: what builds take besides a slot (memory, GPUs, licences).
//! * [`live_file`]: files that count while their process lives. [`sessions`]: who waits and builds.
//! * [`wait`]: waits for a slot; [`order`] says whose turn it is, [`watch`] wakes.

pub(crate) mod live_file;
pub mod order;
pub mod reservations;
pub mod sessions;
pub mod slot_files;
pub(crate) mod wait;
pub(crate) mod watch;
