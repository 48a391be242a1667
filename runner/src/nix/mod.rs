//! What Nix says and hears, and the files it keeps: derivations, the build hook's wire form, the machines file.

pub mod derivation;
pub mod machines;
pub mod wire;
