//! Escape attempts: actions that an attacker would try in a process that runs guests. Compiled for
//! the tests only (feature `escape-drill`): a guest names an attempt, and the host makes it inside
//! the sandbox. `tests/tests/integration/escape.rs` checks that all of them fail. This file
//! bypasses [`super::RunState::call`] on purpose.

use wasmtime::Result;
use wasmtime::component::Linker;

use hookrun_system::drill::attempt;

use super::RunState;

/// The interface that the guest of the test imports.
const INTERFACE: &str = "hookrun:drill/attempts@0.1.0";

pub(super) fn add_to_linker(linker: &mut Linker<RunState>) -> Result<()> {
    linker.instance(INTERFACE)?.func_wrap("run", |_, (what,): (String,)| Ok((attempt(&what),)))
}
