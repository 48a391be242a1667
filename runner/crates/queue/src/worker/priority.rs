//! Gives the worker and its children a lower priority than builds.
//!
//! Threads and processes that are started later inherit it, so it is set before there are any. If
//! the system refuses a setting, the worker runs without it.

use hookrun_config::Priority;
use hookrun_system::process::{self, Scheduling};

/// The nice value of the low priority, in the range from -20 to 19: half of the way from 0 to the
/// lowest priority.
const NICE: i32 = 10;

/// Lowers the priority of this process, which has one thread; never raises it.
pub fn lower(priority: Priority) {
    let scheduling = match priority {
        Priority::Normal => return,
        Priority::Low => Scheduling::Batch,
        Priority::Idle => Scheduling::Idle,
    };
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < NICE) {
        let _set = rustix::process::setpriority_process(None, NICE);
        // The session's priority is changed only if the session is the worker's own.
        if process::leads_session() {
            process::lower_session(NICE);
        }
    }
    process::schedule(scheduling);
}
