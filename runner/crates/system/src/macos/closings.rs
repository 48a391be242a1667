//! Nothing tells which files are closed: the caller looks at them now and then.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Never made.
#[derive(Debug)]
pub struct Closings(Infallible);

impl Closings {
    /// Returns none: the system has nothing of the kind.
    pub fn new(_: &[&Path]) -> Option<Self> {
        None
    }

    /// Never called.
    pub fn any(&self, _: impl Fn(&[u8]) -> bool) -> bool {
        match self.0 {}
    }
}

impl AsFd for Closings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }
}
