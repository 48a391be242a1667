//! The engine: compilation and interruption of guests.
//!
//! Time is limited by epochs. One thread counts them, every store yields to the executor at each
//! tick, and a timeout around the run ([`super::run`]) can then end it at any point. This stops
//! endless loops, includes the time of host calls, and keeps the timeouts of stores independent.
//! The functions that guests are linked with are in [`super::host_call`].

use std::sync::Once;
use std::time::Duration;

use wasmtime::{
    Config, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig, Result,
};

use hookrun_config::{Limit, Limits};

use super::host_call::Imports;

/// The interval at which guests yield. It is far below any time limit, and its cost is within the 1
/// % that epochs cost in any case.
const TICK: Duration = Duration::from_millis(10);

/// Stack for host functions, which run on the same fiber above the guest: wasmtime's default of 2
/// MiB without the default guest stack of 512 KiB.
const HOST_STACK: usize = 1536 << 10;

/// Maximum number of concurrent runs with a pool. More slots would use too much address space.
const MOST_POOLED: usize = 256;

/// Maximum numbers of memories, tables and core instances of a component that fits a slot.
/// Components of the SDK and of `wit-component` have one memory and two tables. Larger ones are
/// allocated on demand.
const POOLED_MEMORIES: u32 = 1;
const POOLED_TABLES: u32 = 3;
const POOLED_INSTANCES: u32 = 16;

/// Bytes of a table and of a stack that are overwritten with zeros after a run and stay in memory
/// for the next one; small plugins use less. The rest is returned to the kernel at once, and so is
/// the whole memory of the guest, so that an idle runner holds none.
const KEPT_TABLE: usize = 4 << 10;
const KEPT_STACK: usize = 32 << 10;

/// An engine with all functions linked. Engines differ only in the guest's stack and in the
/// allocation, which are settings of the engine and not of the store.
pub struct Runtime {
    engine: Engine,
    imports: Imports,
    ticking: Once,
    is_pooled: bool,
}

/// How the memory of guests is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allocation {
    /// Memory is mapped for each run and unmapped after it, for a process with few runs.
    OnDemand,
    /// Memory is in slots that are mapped once, for this number of concurrent runs.
    Pooled(usize),
}

impl Allocation {
    /// Returns the allocation for a plugin with these limits. A plugin whose limits exceed a slot
    /// is allocated on demand.
    #[must_use]
    pub fn for_limits(self, limits: &Limits) -> Self {
        let table = limits.get(Limit::TableElements) <= Limit::TableElements.default();
        match self {
            Self::Pooled(runs) if table && runs <= MOST_POOLED => self,
            _ => Self::OnDemand,
        }
    }
}

impl Runtime {
    /// Creates an engine for guests with `stack` bytes of stack. Its ticker does not run until
    /// [`Runtime::start`], so that a process that has not entered its sandbox yet has one thread.
    ///
    /// # Errors
    /// Returns an error if this machine cannot run the engine.
    pub fn new(stack: u64, allocation: Allocation) -> Result<Self> {
        // If address space is limited (`ulimit -v`), the pool cannot be reserved.
        let pooled = match allocation {
            Allocation::Pooled(runs) => Engine::new(&pooled(stack, runs)).ok(),
            Allocation::OnDemand => None,
        };
        let is_pooled = pooled.is_some();
        let engine = pooled.map_or_else(|| Engine::new(&settings(stack)), Ok)?;
        let imports = Imports::new(&engine)?;
        Ok(Self { engine, imports, ticking: Once::new(), is_pooled })
    }

    /// Returns whether guests run in slots of a pool. Not every component fits one.
    pub fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    /// Starts the thread that counts epochs, once.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(&self) -> Result<()> {
        let mut started = Ok(());
        self.ticking.call_once(|| {
            let weak = self.engine.weak();
            let thread = std::thread::Builder::new().name("hookrun-epoch".to_owned());
            started = thread.spawn(move || tick(&weak)).map(drop);
        });
        Ok(started?)
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn linker(&self) -> &Imports {
        &self.imports
    }
}

/// Returns the settings for compilation, which are part of the key of an artifact.
pub(super) fn settings(stack: u64) -> Config {
    let stack = usize::try_from(stack).unwrap_or(usize::MAX);
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .max_wasm_stack(stack)
        .async_stack_size(stack.saturating_add(HOST_STACK));
    config
}

/// Returns [`settings`] with slots for `runs` concurrent guests. The limits of a plugin apply as
/// without a pool ([`super::limits`]), because a slot reserves only address space.
fn pooled(stack: u64, runs: usize) -> Config {
    let runs = u32::try_from(runs).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(runs)
        .total_core_instances(runs.saturating_mul(POOLED_INSTANCES))
        .total_memories(runs.saturating_mul(POOLED_MEMORIES))
        .total_tables(runs.saturating_mul(POOLED_TABLES))
        .total_stacks(runs)
        .max_core_instances_per_component(POOLED_INSTANCES)
        .max_memories_per_component(POOLED_MEMORIES)
        .max_tables_per_component(POOLED_TABLES)
        .max_tables_per_module(POOLED_TABLES)
        .table_elements(usize::try_from(Limit::TableElements.default()).unwrap_or(usize::MAX))
        .max_unused_warm_slots(runs)
        .table_keep_resident(KEPT_TABLE)
        .async_stack_keep_resident(KEPT_STACK);
    let mut config = settings(stack);
    config.async_stack_zeroing(true).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Counts epochs until the engine is dropped.
fn tick(engine: &EngineWeak) {
    loop {
        std::thread::sleep(TICK);
        match engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compiled_cache::key;

    const STACK: u64 = 512 << 10;

    #[test]
    fn pooled_and_other_guests_run_the_same_code() {
        let one = Runtime::new(STACK, Allocation::Pooled(4)).unwrap();
        let other = Runtime::new(STACK, Allocation::OnDemand).unwrap();
        assert!(one.is_pooled() && !other.is_pooled());
        assert_eq!(key(one.engine(), "digest"), key(other.engine(), "digest"));
    }

    #[test]
    fn a_plugin_whose_limits_exceed_a_slot_gets_none() {
        let mut limits = Limits::default();
        let pooled = Allocation::Pooled(MOST_POOLED);
        assert_eq!(pooled.for_limits(&limits), pooled);
        let too_many = Allocation::Pooled(MOST_POOLED + 1);
        assert_eq!(too_many.for_limits(&limits), Allocation::OnDemand);
        limits.set(Limit::TableElements, Limit::TableElements.default() + 1);
        assert_eq!(pooled.for_limits(&limits), Allocation::OnDemand);
    }
}
