//! Landlock rules for files and TCP ports
//! (<https://docs.kernel.org/userspace-api/landlock.html>).

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};

use crate::wall::{Wall, WallError};

/// The newest rights that are restricted. On older kernels, only those that the kernel supports
/// are; [`missing`] lists the others. Rights of newer kernels (UDP ports, from Linux 7.2) are not
/// restricted, because name resolution needs them.
const RIGHTS: ABI = ABI::V7;

/// Rules whose paths are open, so that a process that cannot open them can apply the rules.
pub(super) struct Rules(RulesetCreated);

impl Rules {
    pub(super) fn prepare(wall: &Wall) -> Result<Self, WallError> {
        let failed = |error: landlock::RulesetError| WallError::step("preparing Landlock", &error);
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RIGHTS))
            .and_then(|rules| rules.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp))
            .and_then(|rules| rules.scope(Scope::from_all(RIGHTS)))
            .and_then(Ruleset::create)
            .map_err(failed)?;
        let reading = AccessFs::ReadFile | AccessFs::ReadDir;
        // No devices, no sockets, no execution.
        let writing = reading
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSym
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
        for (paths, rights) in [(&wall.read, reading), (&wall.write, writing)] {
            for path in paths {
                // A path that does not exist or cannot be opened needs no rule.
                let Ok(beneath) = PathFd::new(path) else { continue };
                let rights =
                    if path.is_dir() { rights } else { rights & AccessFs::from_file(RIGHTS) };
                rules = rules.add_rule(PathBeneath::new(beneath, rights)).map_err(failed)?;
            }
        }
        for port in &wall.connect {
            let rights: BitFlags<AccessNet> = AccessNet::ConnectTcp.into();
            rules = rules.add_rule(NetPort::new(*port, rights)).map_err(failed)?;
        }
        Ok(Self(rules))
    }

    pub(super) fn apply(self) -> Result<(), WallError> {
        self.0
            .restrict_self()
            .map(drop)
            .map_err(|error| WallError::step("applying Landlock", &error))
    }
}

/// Returns what this kernel's Landlock lacks. The numbers are ABI versions (landlock(7), VERSIONS).
pub(super) fn missing() -> Vec<String> {
    let lacks = |what: &str| vec![what.to_owned()];
    match version() {
        Err(rustix::io::Errno::OPNOTSUPP) => lacks(
            "files and ports are not restricted: Landlock is not enabled; add `landlock` to the kernel's `lsm=` parameter",
        ),
        Err(_) | Ok(..1) => {
            lacks("files and ports are not restricted: the kernel has no Landlock (Linux 5.13)")
        }
        Ok(1..=2) => lacks(
            "truncating files and TCP ports are not restricted: Landlock of Linux 6.7 is needed",
        ),
        Ok(3) => lacks("TCP ports are not restricted: Landlock of Linux 6.7 is needed"),
        Ok(4..=5) => {
            lacks("signals to other processes are not restricted: Landlock of Linux 6.12 is needed")
        }
        Ok(6..) => Vec::new(),
    }
}

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h: returns the version, creates nothing.
const ASK_VERSION: libc::c_uint = 1;

fn version() -> Result<i64, rustix::io::Errno> {
    let no_attributes = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the attributes must be null with length 0, and no memory is read or
    // written.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, no_attributes, 0_usize, ASK_VERSION)
    };
    if version < 0 {
        return Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
            .unwrap_or(rustix::io::Errno::NOSYS));
    }
    Ok(version)
}
