//! Nothing tells by name what comes into a directory: the caller looks at it now and then.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::arrivals::Arrived;

/// Never made.
#[derive(Debug)]
pub struct Arrivals(Infallible);

impl Arrivals {
    /// Fails.
    ///
    /// # Errors
    /// Always: the system has nothing of the kind.
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
