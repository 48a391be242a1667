//! capability
pub mod mail;
