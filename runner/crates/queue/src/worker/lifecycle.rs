//! Starts and ends a worker: takes the lock, runs the loop, and runs it again after errors that can
//! pass, such as a full disk.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::FutureExt as _;

use super::{Executor, Mode, Notice, Options, Summary, Worker, WorkerError};
use crate::journal::Journal;
use crate::lock::{LockError, WorkerLock};
use crate::spool;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::layout;

/// A service whose journal cannot be written (a full disk) tries again after this long.
const JOURNAL_PAUSE: Duration = Duration::from_secs(10);

/// Journals that one worker sets aside because they are damaged.
const MAX_SET_ASIDE: u32 = 3;

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
    let stopped = AtomicBool::new(false);
    let noted = async {
        stop.await;
        stopped.store(true, Ordering::Release);
    };
    let mut stop = std::pin::pin!(noted.fuse());
    let mut summary = Summary::default();
    let daemon = options.mode == Mode::Daemon;
    let mut begun = false;
    let mut damage = None;
    let mut set_aside = 0;
    loop {
        let result =
            shift(dirs, &executor, &options, stop.as_mut(), observer, &mut summary, &mut damage)
                .await;
        begun |= !matches!(result, Err(WorkerError::Lock(_) | WorkerError::State { .. }));
        match result {
            // Whoever asked it to stop asks once. What a damaged journal held is in the spool
            // again.
            Err(WorkerError::Journal(error))
                if error.is_damage() && stopped.load(Ordering::Acquire) =>
            {
                return Ok(summary);
            }
            Err(error) if stopped.load(Ordering::Acquire) => return Err(error),
            Ok(Shift::Over) => return Ok(summary),
            Ok(Shift::Again) => {}
            // What the hooks' next worker has taken over meanwhile.
            Err(WorkerError::Lock(LockError::Held { .. })) if begun && !daemon => {
                return Ok(summary);
            }
            // The next shift begins with another journal. Not for ever: where one after the other
            // is damaged, the disk is.
            Err(WorkerError::Journal(error)) if error.is_damage() && set_aside < MAX_SET_ASIDE => {
                set_aside += 1;
                damage = Some(error.to_string());
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
    damage: &mut Option<String>,
) -> Result<Shift, WorkerError> {
    let set_right =
        layout::prepare(dirs).map_err(|error| WorkerError::State { path: dirs.spool(), error })?;
    for notice in set_right {
        observer(Notice::Warning(&notice.message));
    }
    let lock = WorkerLock::take(&dirs.worker_lock())?;
    let journal = match damage {
        Some(reason) => Journal::open_anew(dirs, reason)?,
        None => Journal::open(dirs)?,
    };
    let mut worker =
        Worker::open(dirs, journal, Arc::clone(executor), options.clone(), observer, summary)?;
    *damage = None;
    let worked = worker.work(stop).await;
    let damaged = matches!(&worked, Err(WorkerError::Journal(error)) if error.is_damage());
    if damaged || matches!(worked, Err(WorkerError::Gone { .. })) {
        worker.hand_over_again();
    }
    worked?;
    worker.summary.open = worker.journal.open_tasks(worker.now_ms()).unwrap_or_default();
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
