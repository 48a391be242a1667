//! The interface between the worker and the code that runs plugins.

use futures_util::future::BoxFuture;

use crate::journal::Wanted;
use hookrun_config::{self as config, Retry};
use hookrun_nix::event::Event;
use hookrun_nix::outcome::RunReport;
use hookrun_nix::outcome::Transfer;

/// Runs plugins for the worker. The worker calls it from one task and awaits several runs at once.
pub trait Executor: Send + Sync + 'static {
    /// How the worker works. Asked again after each [`Executor::refresh`] that changed something.
    fn settings(&self) -> config::Worker;

    /// The plugins that are to get this event. Called for each event when it is taken; if there are
    /// none, again when [`Executor::wants`] has changed.
    fn wanted(&self, event: &Event) -> Vec<Wanted>;

    /// A text that changes whenever [`Executor::wanted`] may answer otherwise than before.
    fn wants(&self) -> String;

    /// How a plugin is retried. Called after each failed attempt.
    fn retry(&self, plugin: &str) -> Retry;

    /// Returns the limit of concurrent runs of a plugin; none: as many as there are slots.
    fn concurrency(&self, plugin: &str) -> Option<usize>;

    /// Runs a plugin on an event; `attempt` counts from 1. It must end by itself (the plugin's
    /// limits ensure that). A plugin that is no longer configured is
    /// [`Outcome::Refused`](hookrun_nix::outcome::Outcome::Refused). The future may be dropped
    /// before it ends, when the worker stops.
    fn run<'a>(
        &'a self,
        plugin: &'a str,
        event: &'a Event,
        attempt: u32,
    ) -> BoxFuture<'a, RunReport>;

    /// The uploads that are under way in the runs. Called now and then while tasks run.
    fn transfers(&self) -> Vec<Transfer> {
        Vec::new()
    }

    /// The files that all this comes from: configuration, plugins, secrets.
    fn files(&self) -> Vec<std::path::PathBuf>;

    /// Looks at those files, and takes up what has changed and is right: for the runs that begin
    /// after it.
    fn refresh(&self) -> BoxFuture<'_, Refreshed>;
}

/// What a look at the files of an [`Executor`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether something changed.
    pub changed: bool,
    /// Changes that cannot be taken up, each with the fix; what was before goes on.
    pub problems: Vec<String>,
}
