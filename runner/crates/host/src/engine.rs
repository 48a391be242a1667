//! The engine: how guests are compiled and interrupted.
//!
//! Time is bounded by epochs: one thread counts them, every store yields to the executor at each
//! tick, and a time-out around the run ([`super::run`]) then ends it at any point. A loop is
//! stopped, host calls count, and the time-out of one store does not affect another. The functions
//! that guests are linked with are in [`super::host_call`].

use std::sync::Once;
use std::time::Duration;

use wasmtime::{Config, Engine, EngineWeak, Result};

use super::host_call::Imports;

/// How often guests yield. Within the 1 % that epochs cost anyway, and far below any time limit.
const TICK: Duration = Duration::from_millis(10);

/// Stack for host functions, which run on the same fiber above the guest: wasmtime's default of 2
/// MiB less the default guest stack of 512 KiB.
const HOST_STACK: usize = 1536 << 10;

/// An engine with everything linked. Engines differ only in the guest's stack, which is a setting
/// of the engine and not of the store.
pub struct Runtime {
    engine: Engine,
    imports: Imports,
    ticking: Once,
}

impl Runtime {
    /// An engine for guests with `stack` bytes of stack. Its ticker does not run until
    /// [`Runtime::start`], so that a process that has yet to put up its wall has one thread.
    ///
    /// # Errors
    /// This machine cannot run the engine.
    pub fn new(stack: u64) -> Result<Self> {
        let engine = Engine::new(&settings(stack))?;
        let imports = Imports::new(&engine)?;
        Ok(Self { engine, imports, ticking: Once::new() })
    }

    /// Starts to count epochs, once.
    ///
    /// # Errors
    /// There is no thread to be had.
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

/// What code is compiled for: part of the key of an artifact.
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

/// Counts epochs until the engine is gone.
fn tick(engine: &EngineWeak) {
    loop {
        std::thread::sleep(TICK);
        match engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
    }
}
