//! The post-build hook: a derivation was built.

pub use crate::bindings::post_build::exports::hookrun::post_build::post_build::{Event, Output};
use crate::{Failure, Outcome};

/// A plugin that handles every derivation that was built on this machine.
///
/// ```
/// use hookrun_sdk::{Failure, Outcome, PostBuild, post_build};
///
/// struct Count;
///
/// impl PostBuild for Count {
///     fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
///         if event.outputs.is_empty() {
///             return Err(Failure::permanent(format!("{} has no outputs", event.drv_path)));
///         }
///         Ok(Outcome::new("counted").detail("outputs", event.outputs.len()))
///     }
/// }
/// ```
pub trait PostBuild {
    /// Handles an event. Called in the worker for every attempt. Must be idempotent, because the
    /// same event may be handled again. The outputs are valid and protected from the garbage
    /// collector.
    ///
    /// # Errors
    /// After a transient [`Failure`] the event is tried again later. After a permanent one the task
    /// becomes a dead letter, which `hookrun queue` shows.
    fn handle(event: Event) -> Result<Outcome, Failure>;
}
