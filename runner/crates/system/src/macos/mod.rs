//! macOS. This code was never run. Calls whose behaviour is uncertain are left out;
//! docs/platforms.md lists what is missing.

#![expect(clippy::unnecessary_wraps, reason = "the functions of Linux can fail")]

pub(crate) mod arrivals;
pub(crate) mod closings;
mod seatbelt;

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::net::SendFlags;
use rustix::process::Pid;

use crate::descriptor;
use crate::process::{Scheduling, Started};
use crate::wall::{Identity, User, Wall, WallError};

/// `O_SEARCH` of sys/fcntl.h: `O_EXEC | O_DIRECTORY`.
const O_SEARCH: u32 = 0x4010_0000;
/// The runtime of Rust ignores the signal.
pub(crate) const NO_SIGNAL: SendFlags = SendFlags::empty();
pub(crate) const LOCATE: OFlags = OFlags::from_bits_retain(O_SEARCH);
/// Opening an entry duplicates the descriptor.
pub(crate) const DESCRIPTORS: &str = "/dev/fd";
/// The largest number of an open file where no limit is known (`OPEN_MAX` of sys/syslimits.h).
const MOST_FILES: RawFd = 10_240;
/// The pause between two checks whether a child has ended.
const PAUSE: Duration = Duration::from_millis(2);

/// Returns one more than the largest number that an open file can have. Async-signal-safe.
fn most_files() -> RawFd {
    // SAFETY: takes and returns only numbers.
    let most = unsafe { libc::getdtablesize() };
    if (1..MOST_FILES).contains(&most) { most } else { MOST_FILES }
}

pub(crate) fn open_beneath(_: BorrowedFd<'_>, _: &str, _: OFlags) -> rustix::io::Result<OwnedFd> {
    Err(rustix::io::Errno::NOSYS)
}

pub(crate) fn allows_programs(directory: &Path) -> bool {
    rustix::fs::statfs(directory)
        .is_ok_and(|found| found.f_flags & libc::MNT_NOEXEC.unsigned_abs() == 0)
}

pub(crate) fn close_range(first: u32, last: u32) {
    let numbers = RawFd::try_from(first).unwrap_or(RawFd::MAX)
        ..=RawFd::try_from(last).unwrap_or(RawFd::MAX).min(most_files());
    for number in numbers {
        // SAFETY: a number that this process does not own, as the caller guarantees.
        unsafe { libc::close(number) };
    }
}

/// Async-signal-safe.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    for number in RawFd::try_from(first).unwrap_or(RawFd::MAX)..most_files() {
        descriptor::set_close_on_exec(number, true);
    }
    Ok(())
}

/// Not available. The processes that hookrun starts read a pipe of their parent, or have a time
/// limit.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(())
}

pub(crate) fn die_with(_: Pid) -> io::Result<()> {
    Ok(())
}

/// Creates a file in the temporary directory and removes its name.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    for attempt in 0_u32.. {
        let file = format!("{name}-{}-{attempt}", std::process::id());
        let path = std::env::temp_dir().join(file);
        let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                let made = made?;
                std::fs::remove_file(&path)?;
                return Ok(made);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

pub(crate) fn sealable_file(name: &str) -> io::Result<File> {
    memory_file(name)
}

/// There are no seals, but no other process can open a file without a name.
pub(crate) fn seal(_: &File) -> io::Result<()> {
    Ok(())
}

pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("hookrun"))
}

pub(crate) fn image_of(pid: i32) -> PathBuf {
    program_of(pid).unwrap_or_default()
}

pub(crate) fn program_of(pid: i32) -> Option<PathBuf> {
    let mut buffer = vec![0_u8; usize::try_from(libc::PROC_PIDPATHINFO_MAXSIZE).ok()?];
    let length = u32::try_from(buffer.len()).ok()?;
    // SAFETY: the buffer has this length, and the call writes at most that.
    let written = unsafe { libc::proc_pidpath(pid, buffer.as_mut_ptr().cast(), length) };
    let written = usize::try_from(written).ok().filter(|written| *written > 0)?;
    buffer.truncate(written);
    Some(PathBuf::from(std::ffi::OsString::from_vec(buffer)))
}

/// Not implemented: the system returns them in a format of its own, only to root and the owner.
pub(crate) fn arguments_of(_: i32) -> Vec<u8> {
    Vec::new()
}

fn info(pid: i32) -> Option<libc::proc_bsdinfo> {
    let size = libc::c_int::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    // SAFETY: all zeros are a valid value of this structure of numbers, and the call writes at most
    // its size.
    unsafe {
        let mut info: libc::proc_bsdinfo = std::mem::zeroed();
        let pointer = (&raw mut info).cast();
        let written = libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, pointer, size);
        (written == size).then_some(info)
    }
}

pub(crate) fn owner_of(pid: i32) -> Option<u32> {
    info(pid).map(|info| info.pbi_uid)
}

pub(crate) fn started(pid: i32) -> Option<Started> {
    let info = info(pid)?;
    Some(Started {
        time: info.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(info.pbi_start_tvusec),
        is_zombie: info.pbi_status == libc::SZOMB,
    })
}

/// Not implemented: callers that end their descendants end only their own child.
pub(crate) fn children_of(_: i32) -> Vec<i32> {
    Vec::new()
}

pub(crate) fn are_children_known() -> bool {
    false
}

/// The system does not show the locks of other processes.
pub(crate) fn locks(_: u64) -> String {
    String::new()
}

pub(crate) fn ends_within(child: &mut Child, time: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if begun.elapsed() >= time {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

pub(crate) fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: system calls on numbers. For root they also set the saved ids.
    let done = unsafe { libc::setgid(gid) == 0 && libc::setuid(uid) == 0 };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// There is only the nice value.
pub(crate) fn schedule(_: Scheduling) {}

pub(crate) fn lower_session(_: i32) {}

/// Not implemented: the wall applies to the whole process here, not to a thread.
pub(crate) fn threads() -> usize {
    1
}

/// Describes this process's user. There are no capabilities to drop.
pub(crate) fn powerless() -> String {
    format!("uid {}", rustix::process::geteuid().as_raw())
}

/// Returns what this system lacks of the wall, in sentences.
pub(crate) fn missing() -> Vec<String> {
    vec![
        "the sandbox of macOS (`sandbox_init`) is used, but hookrun was never tested on a Mac"
            .to_owned(),
        "system calls are not restricted: macOS has no seccomp".to_owned(),
        "TCP connections are not restricted to the ports of the grants".to_owned(),
    ]
}

/// Applies the parts of the wall to this process; returns its user, in words.
pub(crate) fn raise(wall: &Wall) -> Result<String, WallError> {
    let profile = seatbelt::profile(wall);
    let identity = match &wall.identity {
        Identity::User(User { name, uid, gid }) => {
            crate::process::become_user(*uid, *gid)
                .map_err(|error| WallError::step("changing the user", &error))?;
            format!("user {name} (uid {uid})")
        }
        Identity::Powerless => powerless(),
    };
    crate::wall::forbid_core_dumps()?;
    // SAFETY: the request uses no address.
    if unsafe { libc::ptrace(libc::PT_DENY_ATTACH, 0, std::ptr::null_mut(), 0) } != 0 {
        let error = io::Error::last_os_error();
        return Err(WallError::step("forbidding debuggers", &error));
    }
    seatbelt::apply(&profile)?;
    Ok(identity)
}
