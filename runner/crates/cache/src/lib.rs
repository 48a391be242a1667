//! Looks after a binary cache in a plain bucket or directory, without a server or a database.
//!
//! * [`cache`]: a store that is a binary cache. [`inventory`]: all of its objects, and the graph of
//!   references between its paths.
//! * [`verify`]: finds damage. [`content`]: checks the bytes of a NAR. [`progress`]: what an
//!   interrupted verification has done. [`repair`]: mends what was found.
//! * [`pins`]: named roots. [`roots`]: everything that garbage collection keeps. [`plan`]: decides
//!   what may be removed; pure. [`gc`]: condemns and sweeps.
//! * [`sign`]: adds signatures. [`copy`]: copies paths to another cache.
//!
//! Everything works beside uploads and other commands on other machines, and can be interrupted at
//! any time. The agreement with uploads is `hookrun_capability::binary_cache::condemned`.
//!
//! A bucket is input from outside: every read is bounded, and no key or path of it becomes a path
//! of this machine.

pub mod cache;
pub mod content;
pub mod copy;
mod error;
pub mod gc;
pub mod inventory;
pub mod pins;
pub mod plan;
pub mod progress;
pub mod repair;
pub mod roots;
pub mod sign;
pub mod trust;
pub mod verify;

pub use cache::Cache;
pub use error::CacheError;

#[cfg(test)]
mod interleavings;
