//! cli
pub mod error; 
