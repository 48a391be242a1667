//! Gives the worker and its children a lower priority than builds.
//!
//! Threads and processes that are started later inherit it, so it is set before there are any. If
//! the system refuses a setting, the worker runs without it.

use hookrun_config::Priority;

/// The nice value of a low priority, of -20 to 19. Half of the way down from 0.
const NICE: i32 = 10;
/// For `ioprio_set(2)`: the class is in the bits from 13 on.
const IO_BEST_EFFORT: libc::c_int = 2 << 13;
const IO_IDLE: libc::c_int = 3 << 13;
/// The lowest of the eight levels of that class.
const IO_LOWEST: libc::c_int = 7;
/// `IOPRIO_WHO_PROCESS`.
const WHO_PROCESS: libc::c_int = 1;
/// The kernel's scheduling of whole sessions (sched(7)): with it, nice values count within a
/// session only.
const AUTOGROUP: &str = "/proc/self/autogroup";

/// Lowers the priority of this process, which has one thread; never raises it.
pub fn lower(priority: Priority) {
    let (policy, io) = match priority {
        Priority::Normal => return,
        Priority::Low => (libc::SCHED_BATCH, IO_BEST_EFFORT | IO_LOWEST),
        Priority::Idle => (libc::SCHED_IDLE, IO_IDLE),
    };
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < NICE) {
        let _set = rustix::process::setpriority_process(None, NICE);
        // Of the session only if it is the worker's own. Asked through libc: the answer is 0 where
        // the session's leader is outside the PID namespace, and rustix takes that for impossible.
        // SAFETY: both calls take and give numbers only.
        if unsafe { libc::getsid(0) == libc::getpid() } {
            let _set = std::fs::write(AUTOGROUP, NICE.to_string());
        }
    }
    // SAFETY: all zeros are a valid `sched_param`, which holds numbers only. The first call reads
    // it, the other takes numbers.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, policy, &raw const parameters);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, io);
    }
}
