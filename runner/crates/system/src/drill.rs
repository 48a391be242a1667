//! Attempts to break out of the sandbox, only for tests: all of them must fail behind the wall.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

/// Makes an attempt; returns `done`, or `failed: ` and the error of the system.
pub fn attempt(what: &str) -> String {
    let (kind, rest) = what.split_once(':').unwrap_or((what, ""));
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let result = match kind {
        "read" => {
            file(std::fs::File::open(rest).and_then(|mut file| file.read(&mut [0])).map(drop))
        }
        "list" => file(std::fs::read_dir(rest).map(drop)),
        "write" => file(
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(rest)
                .and_then(|mut file| file.write_all(b"x")),
        ),
        "remove" => file(std::fs::remove_file(rest)),
        "connect" => file(TcpStream::connect(rest).map(drop)),
        "listen" => file(TcpListener::bind(rest).map(drop)),
        "udp-listen" => file(UdpSocket::bind(rest).map(drop)),
        "unix" => file(UnixStream::connect(rest).map(drop)),
        "exec" => file(std::process::Command::new(rest).status().map(drop)),
        "parent-memory" => file(std::fs::File::open(format!("/proc/{parent}/mem")).map(drop)),
        "parent-environment" => file(std::fs::read(format!("/proc/{parent}/environ")).map(drop)),
        _ => system_call(kind, parent),
    };
    result.map_or_else(|error| format!("failed: {error}"), |()| "done".to_owned())
}

fn file(result: std::io::Result<()>) -> std::result::Result<(), String> {
    result.map_err(|error| error.to_string())
}

/// Attempts without a safe wrapper. Their arguments do no harm if the kernel allows the call.
fn system_call(kind: &str, parent: i32) -> std::result::Result<(), String> {
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: all pointers are null or point to constants. The test expects the effects of these
    // calls on this process.
    let result = unsafe {
        match kind {
            "ptrace-parent" => {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, parent, null, null)
            }
            "signal-parent" => libc::syscall(libc::SYS_kill, parent, 0),
            "fork" => match libc::syscall(libc::SYS_clone, libc::SIGCHLD, null, null, null, null) {
                0 => libc::_exit(0),
                child => child,
            },
            "mount" => libc::syscall(
                libc::SYS_mount,
                c"none".as_ptr(),
                c"/mnt".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                null,
            ),
            "unshare" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "become-root" => libc::syscall(libc::SYS_setresuid, 0, 0, 0),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, null, 0),
            "keys" => libc::syscall(libc::SYS_keyctl, 0, -3, 0),
            "io-uring" => libc::syscall(libc::SYS_io_uring_setup, 1, null),
            "netlink" => libc::syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0),
            "packets" => libc::syscall(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0),
            "chroot" => libc::syscall(libc::SYS_chroot, c"/".as_ptr()),
            "open-by-handle" => libc::syscall(libc::SYS_open_by_handle_at, libc::AT_FDCWD, null, 0),
            "debuggable" => libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
            other => return Err(format!("there is no attempt `{other}`")),
        }
    };
    // A call that fails because of its arguments was allowed.
    let error = std::io::Error::last_os_error();
    let refused = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES));
    if result < 0 && refused { Err(error.to_string()) } else { Ok(()) }
}
