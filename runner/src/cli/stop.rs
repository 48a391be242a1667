//! `hookrun stop`: ends the worker and the process that waits for build users.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{CliError, Context, output};
use hookrun_nix::exit_code::Exit;
use hookrun_queue::lock;

/// The time for a worker to end, including its running attempts, which count as interrupted.
const PATIENCE: Duration = Duration::from_secs(30);
/// The interval at which the process is checked.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Running attempts are interrupted and run again later; nothing is lost. A service manager or a hook
may start the worker again, so first stop the service, or remove the hooks from nix.conf.

Exit code 0: no worker runs now. 4: the worker does not end, or belongs to another user.

Examples:
  hookrun stop
  systemctl stop hookrun.path hookrun.service && hookrun stop")]
pub(super) struct Args {}

pub(super) fn run(context: &Context, _args: &Args) -> Result<Exit, CliError> {
    let mut ended = 0;
    // The waiting process is ended first, because it starts workers.
    for path in [context.dirs.waiter_lock(), context.dirs.worker_lock()] {
        let Some(holder) = lock::holder(&path) else { continue };
        let unseen = || {
            CliError::environment(anyhow::anyhow!(
                "{} is locked by a process that is not visible from here; run this command in the container or namespace of that process",
                path.display()
            ))
        };
        let process = Pid::from_raw(holder).ok_or_else(unseen)?;
        kill_process(process, Signal::TERM).map_err(|error| {
            CliError::environment(anyhow::anyhow!(
                "process {holder} cannot be ended ({error}); run this command as its user, or as root"
            ))
        })?;
        let end = Instant::now() + PATIENCE;
        while lock::is_held(&path) {
            if Instant::now() >= end {
                return Err(CliError::environment(anyhow::anyhow!(
                    "process {holder} has not ended within {} s; run `kill -9 {holder}` (nothing is lost, and its attempts run again)",
                    PATIENCE.as_secs()
                )));
            }
            std::thread::sleep(PAUSE);
        }
        ended += 1;
    }
    output::print(match ended {
        0 => "no worker runs\n",
        _ => "stopped\n",
    })?;
    Ok(Exit::Done)
}
