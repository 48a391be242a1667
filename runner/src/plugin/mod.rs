//! The sandbox.

pub mod bundled;
