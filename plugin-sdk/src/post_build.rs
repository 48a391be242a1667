//! The post-build hook: a derivation was built.

pub use crate::bindings::post_build::exports::hookrun::post_build::post_build::{Event, Output};
use crate::{Failure, Outcome};

/// A plugin that is told of every derivation that was built on this machine.
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
    /// Called in the worker for every attempt at one event; at least once per event, so it must be
    /// idempotent. The outputs are valid and rooted against garbage collection.
    ///
    /// # Errors
    /// A transient [`Failure`] is tried again later, a permanent one becomes a dead letter that
    /// `hookrun queue` shows.
    fn handle(event: Event) -> Result<Outcome, Failure>;
}
