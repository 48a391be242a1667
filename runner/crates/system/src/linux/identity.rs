//! Changes a walled process to another user, or removes its capabilities.

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};

use crate::wall::{Identity, User, WallError};

/// Changes to this identity permanently, and returns it in words.
pub(super) fn take(identity: &Identity) -> Result<String, WallError> {
    forget_capabilities()?;
    if let Identity::User(User { uid, gid, .. }) = identity {
        crate::process::become_user(*uid, *gid)
            .map_err(|error| WallError::step("changing the user", &error))?;
    }
    // The remaining capabilities, and those of root without a change of user. Without them the
    // process cannot get any others.
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)
        .map_err(|error| WallError::step("dropping capabilities", &error))?;
    Ok(match identity {
        Identity::User(User { name, uid, .. }) => format!("user {name} (uid {uid})"),
        Identity::Powerless => super::powerless(),
    })
}

/// Removes the capabilities that exec could give back. A process without `CAP_SETPCAP` has none.
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
    // From here on root has no special privileges (capabilities(7), securebits).
    let plain = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(plain)
        .map_err(|error| WallError::step("setting secure bits", &error))
}
