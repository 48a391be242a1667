//! The source of a guest's random numbers: all of `wasi:random`.
//!
//! [`Services::with_random`](super::Services::with_random) replaces the source of this machine.

use rand::Rng as _;

/// A source of random numbers.
pub trait Random: std::fmt::Debug + Send + Sync {
    /// Fills `bytes`. It also serves the interfaces that WASI calls insecure.
    fn fill(&self, bytes: &mut [u8]);
}

/// A generator that is suitable for keys, seeded by this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}
