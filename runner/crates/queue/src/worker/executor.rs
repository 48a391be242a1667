//! The interface between the worker and the code that runs plugins.

use futures_util::future::BoxFuture;

use crate::journal::NewTask;
use hookrun_config::{self as config, Retry};
use hookrun_nix::event::Event;
use hookrun_nix::outcome::RunReport;
use hookrun_nix::outcome::Transfer;

/// Runs plugins for the worker. The worker calls it from one task and awaits several runs at once.
pub trait Executor: Send + Sync + 'static {
    /// Returns the settings of the worker. Called again after each [`Executor::refresh`] that
    /// changed something.
    fn settings(&self) -> config::Worker;

    /// Returns the tasks to create for this event. Called for each event when it is taken; if there
    /// are none, called again when [`Executor::wants`] has changed.
    fn wanted(&self, event: &Event) -> Vec<NewTask>;

    /// Returns a text that changes whenever the result of [`Executor::wanted`] may change.
    fn wants(&self) -> String;

    /// Returns the retry settings of a plugin. Called after each failed attempt.
    fn retry(&self, plugin: &str) -> Retry;

    /// Returns the limit of concurrent runs of a plugin; none if only the number of slots limits
    /// them.
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

    /// Returns the uploads in progress. Called at intervals while tasks run.
    fn transfers(&self) -> Vec<Transfer> {
        Vec::new()
    }

    /// Returns the files that the executor was made from: configuration, plugins, secrets.
    fn files(&self) -> Vec<std::path::PathBuf>;

    /// Checks those files, and applies valid changes to the runs that begin later.
    fn refresh(&self) -> BoxFuture<'_, Refreshed>;
}

/// The result of checking the files of an [`Executor`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Whether something changed.
    pub changed: bool,
    /// Changes that cannot be applied, each with the fix. The previous state stays in use.
    pub problems: Vec<String>,
}
