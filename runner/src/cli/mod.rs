//! cli
pub mod error;
