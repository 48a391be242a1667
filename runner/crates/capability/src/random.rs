//! The source of a guest's random numbers: all of `wasi:random`.
//!
//! Called by the choke point only. Another source takes the place of this machine's by
//! [`Services::with_random`](super::Services::with_random).

use rand::Rng as _;

/// A source of random numbers.
pub trait Random: std::fmt::Debug + Send + Sync {
    /// Fills `bytes`. Also serves the interfaces that WASI calls insecure.
    fn fill(&self, bytes: &mut [u8]);
}

/// A generator that is fit for keys, seeded by this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}
