//! Admission of host calls: the checks of each call when it enters the host and when it returns to
//! the guest, and the refusal of a call that fails one.
//!
//! [`RunState::call`] uses it for every call of every capability and of WASI. It compares the call
//! with grants and limits and does no work of a capability.

use std::time::Instant;

use wasmtime::Result;

use super::{HostCall, RunState};
use crate::limits::LimitReached;
use hookrun_capability::CapabilityError;
use hookrun_capability::grants::Need;
use hookrun_config::{Limit, Plugin};

/// The reason why a call was refused.
pub(super) enum Refused {
    /// The grant is missing; the guest gets the message.
    Denied(String),
    /// A limit of this call alone was exceeded.
    Limit(LimitReached),
}

impl RunState {
    /// Counts a call that enters the host, and checks grants and limits.
    pub(super) fn enter(&mut self, call: &HostCall<'_>) -> Result<Option<Refused>> {
        let (count, limit) = match call.need {
            Need::Wasi(_) => (&mut self.wasi_calls, Limit::WasiCalls),
            _ => (&mut self.host_calls, Limit::HostCalls),
        };
        *count += 1;
        let count = *count;
        if count > self.limit(limit) {
            return Err(self.stop_in(*call, limit, Some(count)));
        }
        let name = call.name();
        let mut needs = [call.need].into_iter().chain(call.also.iter().copied());
        let check = |need| self.plugin.effective.check(&self.plugin.wants, need);
        if let Err(refusal) = needs.try_for_each(check) {
            *self.denied.entry(name).or_default() += 1;
            tracing::debug!(plugin = self.plugin.plugin.name, call = %name, "refused");
            return Ok(Some(Refused::Denied(
                refusal.message(&self.plugin.plugin.name, &self.plugin.config_file),
            )));
        }
        *self.calls.entry(name).or_default() += 1;
        let items = call.items as u64;
        if items > self.limit(Limit::ListItems) {
            let reached =
                LimitReached { limit: Limit::ListItems, wanted: Some(items), call: Some(name) };
            return Ok(Some(Refused::Limit(reached)));
        }
        self.cross(call, call.sent)
    }

    /// Checks what a call returns to the guest.
    pub(super) fn leave(
        &mut self,
        call: &HostCall<'_>,
        entered: Instant,
        received: u64,
        error: Option<&'static str>,
    ) -> Result<Option<Refused>> {
        tracing::trace!(
            plugin = self.plugin.plugin.name,
            call = %call.name(),
            micros = u64::try_from(entered.elapsed().as_micros()).unwrap_or(u64::MAX),
            error,
        );
        self.cross(call, received)
    }

    /// Counts bytes between guest and host against the limits of a call and of a run.
    pub(super) fn cross(&mut self, call: &HostCall<'_>, bytes: u64) -> Result<Option<Refused>> {
        self.host_bytes = self.host_bytes.saturating_add(bytes);
        if self.host_bytes > self.limit(Limit::HostBytes) {
            return Err(self.stop_in(*call, Limit::HostBytes, Some(self.host_bytes)));
        }
        Ok((bytes > self.limit(Limit::CallBytes)).then(|| {
            let name = Some(call.name());
            Refused::Limit(LimitReached {
                limit: Limit::CallBytes,
                wanted: Some(bytes),
                call: name,
            })
        }))
    }

    /// Returns the refusal as an error for the guest.
    pub(super) fn explain(&self, refused: &Refused) -> CapabilityError {
        match refused {
            Refused::Denied(message) => CapabilityError::denied(message.clone()),
            Refused::Limit(reached) => {
                let Plugin { name, limits, .. } = &self.plugin.plugin;
                CapabilityError::limit(reached.message(name, limits))
            }
        }
    }

    /// Ends the run, where the guest cannot be given a refusal.
    pub(super) fn end(&mut self, refused: Refused) -> wasmtime::Error {
        match refused {
            Refused::Denied(message) => wasmtime::Error::msg(message),
            Refused::Limit(reached) => self.stop(reached),
        }
    }

    pub(super) fn limit(&self, limit: Limit) -> u64 {
        self.plugin.plugin.limits.get(limit)
    }

    pub(super) fn stop_in(
        &mut self,
        call: HostCall<'_>,
        limit: Limit,
        wanted: Option<u64>,
    ) -> wasmtime::Error {
        self.stop(LimitReached { limit, wanted, call: Some(call.name()) })
    }

    pub(super) fn stop(&mut self, reached: LimitReached) -> wasmtime::Error {
        self.reached = Some(reached);
        reached.into()
    }
}
