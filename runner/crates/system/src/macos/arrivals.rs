//! Not available: the caller lists the directories at intervals.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::arrivals::Arrived;

/// Is never created.
#[derive(Debug)]
pub struct Arrivals(Infallible);

impl Arrivals {
    /// Fails.
    ///
    /// # Errors
    /// Always, because the system has no such interface.
    pub fn new<'a>(_: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub fn follow(&mut self) -> io::Result<bool> {
        match self.0 {}
    }

    /// Never called.
    pub fn look(&mut self) -> Arrived {
        match self.0 {}
    }
}

impl AsFd for Arrivals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }
}
