//! The source of a guest's random numbers: all of `wasi:random`.
//!
//! [`Services::with_random`](super::Services::with_random) replaces the source of this machine.

use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

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

/// A generator for tests: the same numbers for the same seed.
#[derive(Debug)]
pub struct SeededRandom(Mutex<StdRng>);

impl SeededRandom {
    /// Returns the generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}
