//! The plugins that are part of the program.

/// Their names, as in `source = "bundled:NAME"`: the directories of `plugins/`.
pub const NAMES: &[&str] = include!(concat!(env!("OUT_DIR"), "/bundled.rs"));
