//! The description of one host call, for the checks of the choke point and for messages.

use crate::limits::CallName;
use hookrun_capability::grants::Need;
#[cfg(doc)]
use hookrun_config::Limit;

/// One host call, described.
#[derive(Debug, Clone, Copy)]
pub struct HostCall<'a> {
    pub(super) need: Need<'a>,
    function: &'static str,
    pub(super) sent: u64,
    pub(super) items: usize,
    pub(super) waiting: bool,
    pub(super) lasting: bool,
}

impl<'a> HostCall<'a> {
    /// The call of `function` with arguments of `sent` bytes, that needs `need`.
    pub fn new(need: Need<'a>, function: &'static str, sent: u64) -> Self {
        Self { need, function, sent, items: 0, waiting: false, lasting: false }
    }

    /// The longest list among the arguments has so many items.
    #[must_use]
    pub fn items(self, items: usize) -> Self {
        Self { items: self.items.max(items), ..self }
    }

    /// The call waits for a service, for as long as the service and the size of what is moved
    /// decide: its time is not the plugin's, and counts as [`Limit::StreamTime`].
    #[must_use]
    pub fn waiting(self) -> Self {
        Self { waiting: true, ..self }
    }

    /// What the call does when it succeeds outlives the run, such as an object that is stored: the
    /// run has made progress, and if it fails later the attempt is not counted.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self { lasting: true, ..self }
    }

    pub(super) fn wasi(interface: &'static str, function: &'static str) -> Self {
        Self::new(Need::Wasi(interface), function, 0)
    }

    pub(super) fn sending(self, sent: u64) -> Self {
        Self { sent, ..self }
    }

    pub(super) fn name(&self) -> CallName {
        CallName { interface: self.need.interface(), function: self.function }
    }
}
