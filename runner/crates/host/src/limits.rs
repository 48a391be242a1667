//! Enforces [`config::Limit`](hookrun_config::Limit) inside the engine: memories, tables,
//! instances. Host calls are limited in [`super::host_call`], time in [`super::run_clock`], output
//! in [`super::run`], the stack in [`super::engine`].
//!
//! A limit ends the run with [`LimitReached`], which [`super::run`] turns into a message that names
//! the key. Growth is refused with a trap instead of the -1 of `memory.grow`, because guests react
//! to -1 with an abort without a message.

use wasmtime::{ResourceLimiter, Result};

use hookrun_config::{Limit, Limits};

/// A limit that ended the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("limit `{}` reached", limit.key())]
pub struct LimitReached {
    pub limit: Limit,
    /// The requested amount in the limit's unit, if it is known.
    pub wanted: Option<u64>,
    /// The host call during which the limit was reached.
    pub call: Option<CallName>,
}

impl LimitReached {
    /// Returns a limit that the guest reached by itself, outside of a host call.
    pub const fn by_guest(limit: Limit, wanted: Option<u64>) -> Self {
        Self { limit, wanted, call: None }
    }

    /// Returns the message for the plugin called `plugin`, which has `limits`. It names the limit,
    /// the use, the host call and the line to write.
    pub fn message(&self, plugin: &str, limits: &Limits) -> String {
        let call = self.call.map(|call| call.to_string());
        self.limit.reached_in(plugin, limits.get(self.limit), self.wanted, call.as_deref())
    }
}

/// The name of a host call as in messages, such as `mail.send`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallName {
    /// The interface, such as `mail` or `wasi:io/poll`.
    pub interface: &'static str,
    pub function: &'static str,
}

impl std::fmt::Display for CallName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.interface, self.function)
    }
}

/// The memories, tables and instances of a store, and their limits.
#[derive(Debug)]
pub struct Allocations {
    memory: u64,
    peak_memory: u64,
    tables: u64,
    /// The amount that the last `*_growing` call allowed. It is taken back if the growth fails
    /// nevertheless.
    pending: u64,
    allowed_memory: u64,
    allowed_elements: u64,
    allowed_instances: usize,
    reached: Option<LimitReached>,
}

impl Allocations {
    pub fn new(limits: &Limits) -> Self {
        Self {
            memory: 0,
            peak_memory: 0,
            tables: 0,
            pending: 0,
            allowed_memory: limits.get(Limit::Memory),
            allowed_elements: limits.get(Limit::TableElements),
            allowed_instances: usize::try_from(limits.get(Limit::Instances)).unwrap_or(usize::MAX),
            reached: None,
        }
    }

    /// Returns the maximum of memory in use, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.peak_memory
    }

    /// Returns the limit that was reached, if one was.
    pub fn reached(&self) -> Option<LimitReached> {
        self.reached
    }

    fn refuse(&mut self, limit: Limit, wanted: u64) -> Result<bool> {
        let reached = LimitReached::by_guest(limit, Some(wanted));
        self.reached = Some(reached);
        Err(reached.into())
    }
}

/// The sum of all memories counts, and the sum of all tables.
impl ResourceLimiter for Allocations {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool> {
        let grown = desired.saturating_sub(current) as u64;
        let wanted = self.memory.saturating_add(grown);
        if wanted > self.allowed_memory {
            return self.refuse(Limit::Memory, wanted);
        }
        self.memory = wanted;
        self.peak_memory = self.peak_memory.max(wanted);
        self.pending = grown;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> Result<()> {
        self.memory = self.memory.saturating_sub(std::mem::take(&mut self.pending));
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool> {
        let grown = desired.saturating_sub(current) as u64;
        let wanted = self.tables.saturating_add(grown);
        if wanted > self.allowed_elements {
            return self.refuse(Limit::TableElements, wanted);
        }
        self.tables = wanted;
        self.pending = grown;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> Result<()> {
        self.tables = self.tables.saturating_sub(std::mem::take(&mut self.pending));
        Ok(())
    }

    fn instances(&self) -> usize {
        self.allowed_instances
    }

    fn tables(&self) -> usize {
        self.allowed_instances
    }

    fn memories(&self) -> usize {
        self.allowed_instances
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 65_536;

    #[test]
    fn the_sum_of_all_memories_counts() {
        let mut limits = Limits::default();
        limits.set(Limit::Memory, 3 * PAGE as u64);
        let mut allocations = Allocations::new(&limits);
        assert!(allocations.memory_growing(0, PAGE, None).unwrap());
        assert!(allocations.memory_growing(0, 2 * PAGE, None).unwrap());
        let error = allocations.memory_growing(PAGE, 2 * PAGE, None).unwrap_err();
        let reached = LimitReached::by_guest(Limit::Memory, Some(4 * PAGE as u64));
        assert_eq!(error.downcast_ref::<LimitReached>(), Some(&reached));
        assert_eq!(allocations.reached(), Some(reached));
        assert_eq!(allocations.peak_memory(), 3 * PAGE as u64);
    }

    #[test]
    fn the_amount_of_a_failed_growth_is_taken_back() {
        let mut limits = Limits::default();
        limits.set(Limit::TableElements, 10);
        let mut allocations = Allocations::new(&limits);
        assert!(allocations.table_growing(0, 10, None).unwrap());
        allocations.table_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert!(allocations.table_growing(0, 10, None).unwrap());
        assert!(allocations.table_growing(10, 11, None).is_err());
    }
}
