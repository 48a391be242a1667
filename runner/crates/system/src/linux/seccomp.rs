//! The list of system calls that a sandboxed process may make. All others fail with `ENOSYS`, so
//! that libraries use their fallbacks, and calls of later kernels are refused as well.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::wall::WallError;

/// Calls for files, memory, threads and time, which native code, SQLite and the async runtime need.
const ORDINARY: &[c_long] = &[
    // Files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Threads and signals of this process.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
];

/// Older forms of these calls, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Calls of internet clients. No other process can connect to this one.
const NETWORK: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// For [`libc::prctl`]: names of threads and mappings, and queries.
const PRCTL: &[libc::c_int] =
    &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_GET_DUMPABLE];

/// For [`libc::ioctl`]: readable bytes, blocking mode, close-on-exec, and terminal queries.
const IOCTL: &[libc::Ioctl] =
    &[libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX, libc::TCGETS, libc::TIOCGWINSZ];

/// The type of a socket without its flags (`SOCK_CLOEXEC`, `SOCK_NONBLOCK`); Linux
/// `include/linux/net.h`, `SOCK_TYPE_MASK`.
const SOCK_TYPE_MASK: u64 = 0xf;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Applies the filter to this thread, and so to all threads that it starts.
pub(super) fn apply(network: bool) -> Result<(), WallError> {
    let failed = |error: &dyn std::fmt::Display| WallError::step("applying seccomp", error);
    let program = program(network).map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

fn program(network: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let filter = SeccompFilter::new(
        rules(network)?,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    filter.try_into()
}

/// The condition that the bits of `mask` in the lower 32 bits of an argument are `value`.
fn argument(
    index: u8,
    mask: u64,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

const WHOLE: u64 = u32::MAX as u64;

fn rules(network: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules =
        ORDINARY.iter().chain(OLDER).map(|number| (*number, Vec::new())).collect();
    let mut only = |number: c_long, alternatives: Vec<Vec<SeccompCondition>>| {
        let alternatives =
            alternatives.into_iter().map(SeccompRule::new).collect::<Result<Vec<_>, _>>()?;
        rules.insert(number, alternatives);
        Ok::<_, seccompiler::BackendError>(())
    };
    // Threads, never processes. `clone3`, whose flags a filter cannot see, is not on the list:
    // glibc then uses `clone`.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    only(libc::SYS_clone, vec![vec![argument(0, thread, thread)?]])?;
    // Signals to this process itself, which it needs to abort.
    let own = u64::from(std::process::id());
    only(libc::SYS_tgkill, vec![vec![argument(0, WHOLE, own)?]])?;
    // Its limits can be read, not set.
    let nothing = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    only(libc::SYS_prlimit64, vec![vec![argument(0, WHOLE, 0)?, nothing]])?;
    let one_of = |index: u8, values: &mut dyn Iterator<Item = u64>| {
        values
            .map(|value| Ok(vec![argument(index, WHOLE, value & WHOLE)?]))
            .collect::<Result<Vec<_>, _>>()
    };
    only(
        libc::SYS_prctl,
        one_of(0, &mut PRCTL.iter().map(|option| u64::from(option.unsigned_abs())))?,
    )?;
    #[allow(clippy::useless_conversion, reason = "the type differs between C libraries")]
    only(libc::SYS_ioctl, one_of(1, &mut IOCTL.iter().map(|request| u64::from(*request)))?)?;
    // A socket pair stays within this process; the async runtime uses one for signals.
    only(libc::SYS_socketpair, vec![vec![argument(0, WHOLE, family(libc::AF_UNIX))?]])?;
    let pairs = [libc::SYS_recvfrom, libc::SYS_sendto];
    if !network {
        rules.extend(pairs.map(|number| (number, Vec::new())));
        return Ok(rules);
    }
    // TCP and UDP (name resolution) over IP. No Unix sockets, on which daemons of root listen, and
    // no raw packets.
    let mut sockets = Vec::new();
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(vec![
                argument(0, WHOLE, family(domain))?,
                argument(1, SOCK_TYPE_MASK, u64::from(kind.unsigned_abs()))?,
            ]);
        }
    }
    only(libc::SYS_socket, sockets)?;
    rules.extend(NETWORK.iter().map(|number| (*number, Vec::new())));
    Ok(rules)
}

fn family(number: libc::c_int) -> u64 {
    u64::from(number.unsigned_abs())
}

/// Returns what this kernel's seccomp lacks.
pub(super) fn missing() -> Vec<String> {
    if std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Vec::new();
    }
    vec![
        "system calls are not restricted: the kernel has no seccomp filter (CONFIG_SECCOMP_FILTER)"
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_calls_are_not_on_the_list() {
        let rules = rules(true).unwrap();
        for number in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_io_uring_setup,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_kill,
            libc::SYS_setresuid,
            libc::SYS_listen,
            libc::SYS_bind,
            libc::SYS_accept4,
            libc::SYS_pidfd_getfd,
            libc::SYS_mknodat,
        ] {
            assert!(!rules.contains_key(&number), "{number}");
        }
    }

    #[test]
    fn without_network_there_is_no_socket() {
        let rules = rules(false).unwrap();
        assert!(!rules.contains_key(&libc::SYS_socket) && !rules.contains_key(&libc::SYS_connect));
    }

    #[test]
    fn the_filter_compiles() {
        assert!(program(true).is_ok() && program(false).is_ok());
    }
}
