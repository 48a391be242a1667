//! Starts and ends a worker: takes the lock, runs the loop, and runs it again after temporary
//! errors such as a full disk.

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

/// The time after which a service tries again if its journal cannot be written, for example because
/// the disk is full.
const JOURNAL_PAUSE: Duration = Duration::from_secs(10);

/// The number of damaged journals that one worker replaces.
const MAX_SET_ASIDE: u32 = 3;

/// Runs a worker until it is done, as its mode defines, or `stop` is ready.
///
/// # Errors
/// Another worker runs, or the state directory or the journal cannot be used. A worker in
/// [`Mode::Daemon`] continues if the journal is removed or cannot be written for some time.
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
            // A stop is requested only once. The events of a damaged journal are in the spool
            // again.
            Err(WorkerError::Journal(error))
                if error.is_damage() && stopped.load(Ordering::Acquire) =>
            {
                return Ok(summary);
            }
            Err(error) if stopped.load(Ordering::Acquire) => return Err(error),
            Ok(Shift::Over) => return Ok(summary),
            Ok(Shift::Again) => {}
            // A worker of a hook has taken over meanwhile.
            Err(WorkerError::Lock(LockError::Held { .. })) if begun && !daemon => {
                return Ok(summary);
            }
            // The next shift starts with another journal. The number is limited: if journals are
            // damaged again and again, the disk is defective.
            Err(WorkerError::Journal(error)) if error.is_damage() && set_aside < MAX_SET_ASIDE => {
                set_aside += 1;
                damage = Some(error.to_string());
            }
            Err(error @ WorkerError::Gone { .. }) => observer(Notice::Warning(&error.to_string())),
            Err(error) if daemon && begun => {
                observer(Notice::Warning(&format!(
                    "{error}; trying again in {} s",
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

/// The result of a [`shift`].
enum Shift {
    Over,
    Again,
}

/// Runs a worker from taking the lock to releasing it.
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
    // A hook may have handed over an event while the lock was held, and therefore started no other
    // worker.
    let again = !stopped && matches!(options.mode, Mode::Spawned { .. }) && spool::depth(dirs) > 0;
    Ok(if again { Shift::Again } else { Shift::Over })
}

/// Returns a future that is ready when the process is asked to end, by SIGTERM or SIGINT.
///
/// # Errors
/// The signal handlers cannot be installed.
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
