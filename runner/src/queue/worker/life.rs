//! A worker's life: from taking the lock to leaving it, and again after what can be waited out,
//! such as a full disk.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt as _;

use super::{Executor, Mode, Notice, Options, Summary, Worker, WorkerError};
use crate::dirs::Dirs;
use crate::layout;
use crate::queue::lock::{LockError, WorkerLock};
use crate::queue::spool;

/// A service whose journal cannot be written (a full disk) tries again after this long.
const JOURNAL_PAUSE: Duration = Duration::from_secs(10);

/// Runs a worker until its mode says it is done or `stop` is ready.
///
/// # Errors
/// If another worker runs, or the state directory or the journal cannot be used. A worker in
/// [`Mode::Daemon`] goes on when the journal cannot be written for a while or is removed.
pub async fn run(
    dirs: &Dirs,
    executor: Arc<dyn Executor>,
    options: Options,
    stop: impl Future<Output = ()> + Send,
    observer: &mut (dyn FnMut(Notice<'_>) + Send),
) -> Result<Summary, WorkerError> {
    let mut stop = std::pin::pin!(stop.fuse());
    let mut summary = Summary::default();
    let daemon = options.mode == Mode::Daemon;
    let mut begun = false;
    loop {
        let result = shift(dirs, &executor, &options, stop.as_mut(), observer, &mut summary).await;
        begun |= !matches!(result, Err(WorkerError::Lock(_) | WorkerError::State { .. }));
        match result {
            Ok(Shift::Over) => return Ok(summary),
            Ok(Shift::Again) => {}
            // What the hooks' next worker has taken over meanwhile.
            Err(WorkerError::Lock(LockError::Held { .. })) if begun && !daemon => {
                return Ok(summary);
            }
            Err(error @ WorkerError::Gone { .. }) => observer(Notice::Warning(&error.to_string())),
            Err(error) if daemon && begun => {
                observer(Notice::Warning(&format!(
                    "{error}; tried again in {} s",
                    JOURNAL_PAUSE.as_secs()
                )));
                tokio::select! {
                    () = options.clock.sleep(JOURNAL_PAUSE) => {}
                    () = stop.as_mut() => return Ok(summary),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// How a [`shift`] ended.
enum Shift {
    Over,
    Again,
}

/// From taking the lock to leaving it.
async fn shift(
    dirs: &Dirs,
    executor: &Arc<dyn Executor>,
    options: &Options,
    stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    observer: &mut (dyn FnMut(Notice<'_>) + Send),
    summary: &mut Summary,
) -> Result<Shift, WorkerError> {
    let set_right =
        layout::prepare(dirs).map_err(|error| WorkerError::State { path: dirs.spool(), error })?;
    for notice in set_right {
        observer(Notice::Warning(&notice.message));
    }
    let lock = WorkerLock::take(&dirs.worker_lock())?;
    let mut worker = Worker::open(dirs, Arc::clone(executor), options.clone(), observer, summary)?;
    let worked = worker.work(stop).await;
    if let Err(WorkerError::Gone { .. }) = worked {
        worker.hand_over_again();
    }
    worked?;
    worker.summary.open = worker.journal.open_tasks(worker.now_ms())?;
    let stopped = worker.stopped;
    drop(worker);
    drop(lock);
    // A hook may have handed over while the lock was held, and so have started no other worker.
    let again = !stopped && matches!(options.mode, Mode::Spawned { .. }) && spool::depth(dirs) > 0;
    Ok(if again { Shift::Again } else { Shift::Over })
}

/// Ready when the process is asked to end: SIGTERM or SIGINT.
///
/// # Errors
/// If the signals cannot be waited for.
pub fn asked_to_stop() -> std::io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
