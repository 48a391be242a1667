//! What Nix says and hears.

pub mod derivation;
