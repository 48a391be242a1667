//! The main job on real Nix, in a private store that touches nothing of the user's: `hookrun demo`.

pub mod private_nix;
