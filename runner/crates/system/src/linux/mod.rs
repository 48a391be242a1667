//! Linux.

pub(crate) mod arrivals;
pub(crate) mod closings;
mod identity;
mod landlock;
mod seccomp;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, StatVfsMountFlags};
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::process::{Scheduling, Started};
use crate::wall::{Wall, WallError};

/// Writing to a closed stream causes an error, not a signal.
pub(crate) const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
pub(crate) const LOCATE: OFlags = OFlags::PATH;
/// Has an entry for each open file of this process.
pub(crate) const DESCRIPTORS: &str = "/proc/self/fd";
const LOCKS: &str = "/proc/locks";
const AUTOGROUP: &str = "/proc/self/autogroup";

/// For `ioprio_set(2)`: the class is in the bits from 13 on.
const IO_BEST_EFFORT: libc::c_int = 2 << 13;
const IO_IDLE: libc::c_int = 3 << 13;
/// The lowest of the eight levels of that class.
const IO_LOWEST: libc::c_int = 7;
/// `IOPRIO_WHO_PROCESS`.
const WHO_PROCESS: libc::c_int = 1;

pub(crate) fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), beneath)
}

pub(crate) fn allows_programs(directory: &Path) -> bool {
    rustix::fs::statvfs(directory)
        .is_ok_and(|found| !found.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

pub(crate) fn close_range(first: u32, last: u32) {
    // SAFETY: a system call on numbers, none of which this process owns, as the caller guarantees.
    let _closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Async-signal-safe.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: a system call on numbers, which does not close anything yet.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Async-signal-safe.
pub(crate) fn die_with(parent: Pid) -> io::Result<()> {
    die_with_parent()?;
    // The parent may have died before the line above.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(())
}

pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

pub(crate) fn sealable_file(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

pub(crate) fn seal(file: &File) -> io::Result<()> {
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_add_seals(file, all)?)
}

pub(crate) fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

pub(crate) fn image_of(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

pub(crate) fn program_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(image_of(pid)).ok()
}

pub(crate) fn arguments_of(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

pub(crate) fn owner_of(pid: i32) -> Option<u32> {
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|found| found.uid())
}

/// Parses `/proc/PID/stat` (proc(5)). The second field, in parentheses, may contain any text.
pub(crate) fn started(pid: i32) -> Option<Started> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Started {
        time: fields.nth(18)?.parse().ok()?,
        is_zombie: matches!(state, "Z" | "X" | "x"),
    })
}

pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    children.split_ascii_whitespace().filter_map(|text| text.parse().ok()).collect()
}

/// The kernel needs `CONFIG_PROC_CHILDREN`.
pub(crate) fn are_children_known() -> bool {
    let pid = std::process::id();
    Path::new(&format!("/proc/{pid}/task/{pid}/children")).exists()
}

pub(crate) fn locks(most: u64) -> String {
    let mut text = String::new();
    let read = File::open(LOCKS).and_then(|file| file.take(most).read_to_string(&mut text));
    if read.is_ok() { text } else { String::new() }
}

pub(crate) fn ends_within(child: &mut Child, time: Duration) -> io::Result<bool> {
    let process = Pid::from_child(child);
    let ended: OwnedFd = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
    let mut events = [PollFd::new(&ended, PollFlags::IN)];
    let begun = Instant::now();
    loop {
        let left = time.saturating_sub(begun.elapsed());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut events, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    let checked = |result: libc::c_int| {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: system calls on numbers.
    unsafe {
        checked(libc::setresgid(gid, gid, gid))?;
        checked(libc::setresuid(uid, uid, uid))
    }
}

pub(crate) fn schedule(scheduling: Scheduling) {
    let (policy, io) = match scheduling {
        Scheduling::Batch => (libc::SCHED_BATCH, IO_BEST_EFFORT | IO_LOWEST),
        Scheduling::Idle => (libc::SCHED_IDLE, IO_IDLE),
    };
    // SAFETY: all zeros are a valid `sched_param`, which holds numbers only. The first call reads
    // it, the other takes numbers.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, policy, &raw const parameters);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, io);
    }
}

pub(crate) fn lower_session(nice: i32) {
    let _set = std::fs::write(AUTOGROUP, nice.to_string());
}

/// Returns the number of threads of this process.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Describes this process's user without capabilities.
pub(crate) fn powerless() -> String {
    format!("uid {} without capabilities", rustix::process::geteuid().as_raw())
}

/// Returns what this kernel lacks of the wall, in sentences.
pub(crate) fn missing() -> Vec<String> {
    let mut missing = landlock::missing();
    missing.extend(seccomp::missing());
    missing
}

/// Applies the parts of the wall to this process; returns its user, in words.
pub(crate) fn raise(wall: &Wall) -> Result<String, WallError> {
    // The rules open paths, which this process may not be able to do later.
    let rules = landlock::Rules::prepare(wall)?;
    let identity = identity::take(&wall.identity)?;
    private()?;
    rules.apply()?;
    if seccomp::missing().is_empty() {
        seccomp::apply(wall.network)?;
    }
    Ok(identity)
}

/// Prevents dumps of this process's memory, debuggers even of the same user, and new privileges by
/// exec.
fn private() -> Result<(), WallError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    crate::wall::forbid_core_dumps()?;
    // After the change of user, which also changes whether the process is dumpable (prctl(2),
    // PR_SET_DUMPABLE).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| WallError::step("forbidding debuggers", &error))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| WallError::step("forbidding new privileges", &error))
}
