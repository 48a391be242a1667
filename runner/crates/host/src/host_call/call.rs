//! The description of one host call, for its checks and for messages.

use crate::limits::CallName;
use hookrun_capability::grants::Need;
#[cfg(doc)]
use hookrun_config::Limit;

/// The description of one host call.
#[derive(Debug, Clone, Copy)]
pub struct HostCall<'a> {
    pub(super) need: Need<'a>,
    function: &'static str,
    interface: Option<&'static str>,
    pub(super) also: &'a [Need<'a>],
    pub(super) sent: u64,
    pub(super) items: usize,
    pub(super) waiting: bool,
    pub(super) lasting: bool,
}

impl<'a> HostCall<'a> {
    /// Describes a call of `function`, whose arguments have `sent` bytes and which requires `need`.
    pub fn new(need: Need<'a>, function: &'static str, sent: u64) -> Self {
        let (interface, also) = (None, &[][..]);
        Self { need, function, interface, also, sent, items: 0, waiting: false, lasting: false }
    }

    /// The call is of this interface, which is not that of the capability.
    #[must_use]
    pub fn of(self, interface: &'static str) -> Self {
        Self { interface: Some(interface), ..self }
    }

    /// The call also needs these.
    #[must_use]
    pub fn also(self, also: &'a [Need<'a>]) -> Self {
        Self { also, ..self }
    }

    /// Sets the length of the longest list among the arguments.
    #[must_use]
    pub fn items(self, items: usize) -> Self {
        Self { items: self.items.max(items), ..self }
    }

    /// Marks a call that waits for a service, whose duration depends on the service and on the
    /// amount of data. Its time counts as [`Limit::StreamTime`] and not as the plugin's own time.
    #[must_use]
    pub fn waiting(self) -> Self {
        Self { waiting: true, ..self }
    }

    /// Marks a call whose effect outlives the run, such as storing an object. After such a call the
    /// run has made progress: if it fails later, the attempt is not counted.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self { lasting: true, ..self }
    }

    pub(super) fn wasi(interface: &'static str, function: &'static str) -> Self {
        Self::new(Need::Wasi(interface), function, 0)
    }

    /// Returns whether it is a call of `hookrun:host`, and not of WASI.
    pub(super) fn is_of_hookrun(&self) -> bool {
        !matches!(self.need, Need::Wasi(_) | Need::Http(_))
    }

    pub(super) fn sending(self, sent: u64) -> Self {
        Self { sent, ..self }
    }

    /// Returns the names under which a script may answer the call: its own, and one for each
    /// capability that it needs.
    pub(super) fn scripted_names(&self) -> impl Iterator<Item = String> {
        let function = self.function;
        let needs = [self.need].into_iter().chain(self.also.iter().copied());
        let by_need = needs.map(move |need| format!("{}.{function}", need.interface()));
        [self.name().to_string()].into_iter().chain(by_need)
    }

    pub(super) fn name(&self) -> CallName {
        CallName {
            interface: self.interface.unwrap_or(self.need.interface()),
            function: self.function,
        }
    }
}
