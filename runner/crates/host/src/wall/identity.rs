//! The user of a sandboxed process: another user, or the same one without capabilities.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use super::WallError;

/// Who to become.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Identity {
    /// Whoever it is, without any capability: root's files, and none of root's powers.
    #[default]
    Powerless,
    /// This user; for root only.
    User(User),
}

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its own group.
    pub gid: u32,
}

impl User {
    /// The user called `name`.
    ///
    /// # Errors
    /// There is none, or it is root: a fragment with the fix.
    pub fn find(name: &str) -> Result<Self, String> {
        let Some(user) = uzers::get_user_by_name(name) else {
            return Err(format!(
                "there is no user `{name}`; make it with `useradd --system --no-create-home {name}`"
            ));
        };
        if user.uid() == 0 {
            return Err(format!("`{name}` is root, which guests never run as; name another user"));
        }
        Ok(Self { name: name.to_owned(), uid: user.uid(), gid: user.primary_group_id() })
    }
}

impl Identity {
    /// Becomes it, for good, and says who that is.
    pub(super) fn take(&self) -> Result<String, WallError> {
        forget_capabilities()?;
        if let Self::User(User { uid, gid, .. }) = self {
            become_user(*uid, *gid)
                .map_err(|error| WallError::step("changing the user", &error))?;
        }
        // Those that are left, and those of a root that stays root. Permission to take more is gone
        // with them.
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none)
            .map_err(|error| WallError::step("dropping capabilities", &error))?;
        Ok(match self {
            Self::User(User { name, uid, .. }) => format!("user {name} (uid {uid})"),
            Self::Powerless => {
                format!("uid {} without capabilities", rustix::process::geteuid().as_raw())
            }
        })
    }
}

/// What exec could give back. A process that may not do this has none to lose.
fn forget_capabilities() -> Result<(), WallError> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|error| WallError::step("reading capabilities", &error))?;
    clear_ambient_capability_set()
        .map_err(|error| WallError::step("dropping ambient capabilities", &error))?;
    if !sets.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // The kernel is older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(WallError::step("bounding capabilities", &error)),
        }
    }
    // Root is a user like any other from here on (capabilities(7), securebits).
    let plain = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(plain)
        .map_err(|error| WallError::step("setting secure bits", &error))
}

fn become_user(uid: u32, gid: u32) -> std::io::Result<()> {
    let checked = |result: libc::c_int| {
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: system calls on numbers; the list of groups is empty.
    unsafe {
        // No supplementary groups: what the runner may read is opened before, or stands in its own
        // group.
        checked(libc::setgroups(0, std::ptr::null()))?;
        checked(libc::setresgid(gid, gid, gid))?;
        checked(libc::setresuid(uid, uid, uid))
    }
}
