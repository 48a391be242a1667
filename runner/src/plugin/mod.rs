//! The sandbox.

pub mod bindings;
pub mod bundled;
pub mod grants;
pub mod host_call;
pub mod limits;
