//! Makes a walled process another user, or the same one without capabilities.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use crate::wall::{Identity, User, WallError};

/// Becomes it, for good, and says who that is.
pub(super) fn take(identity: &Identity) -> Result<String, WallError> {
    forget_capabilities()?;
    if let Identity::User(User { uid, gid, .. }) = identity {
        crate::process::become_user(*uid, *gid)
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
    Ok(match identity {
        Identity::User(User { name, uid, .. }) => format!("user {name} (uid {uid})"),
        Identity::Powerless => {
            format!("uid {} without capabilities", rustix::process::geteuid().as_raw())
        }
    })
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
