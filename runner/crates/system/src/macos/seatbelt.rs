//! The sandbox of macOS (`sandbox_init`), which restricts files and the network. The function is
//! deprecated, but browsers use it. The language of its profiles is not documented, so this profile
//! uses only what the profiles in `/usr/share/sandbox` use.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt::Write as _;
use std::path::Path;

use crate::wall::{Wall, WallError};

/// What every process needs: libraries, time zones, random numbers, and information about itself.
const BASE: &str = r#"(version 1)
(deny default)
(allow file-read-metadata)
(allow file-read* (subpath "/usr/lib") (subpath "/usr/share") (subpath "/System/Library"))
(allow file-read* file-write-data (literal "/dev/null") (literal "/dev/urandom"))
(allow file-read* (subpath "/dev/fd"))
(allow sysctl-read)
(allow process-info* (target self))
(allow signal (target self))
"#;

/// Connections to any address, and name resolution.
const NETWORK: &str = r#"(allow network-outbound (remote ip))
(allow network-outbound (literal "/private/var/run/mDNSResponder"))
(allow system-socket)
(allow file-read* (literal "/private/etc/hosts") (literal "/private/etc/resolv.conf"))
"#;

unsafe extern "C" {
    fn sandbox_init(profile: *const c_char, flags: u64, error: *mut *mut c_char) -> c_int;
    fn sandbox_free_error(error: *mut c_char);
}

/// Returns the profile of a wall, in the language of the system.
pub(super) fn profile(wall: &Wall) -> String {
    let mut text = BASE.to_owned();
    let rules = [(&wall.read, "file-read*"), (&wall.write, "file-read* file-write*")];
    for (paths, operations) in rules {
        for path in paths {
            // The system compares paths without symbolic links. A missing path needs no rule.
            let Some(path) = std::fs::canonicalize(path).ok().as_deref().and_then(quoted) else {
                continue;
            };
            // Writing to a string does not fail.
            let _written = writeln!(text, "(allow {operations} (subpath {path}))");
        }
    }
    if wall.network {
        text.push_str(NETWORK);
    }
    text
}

/// Returns a path as a string of the profile; `None` if it is not UTF-8.
fn quoted(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Applies the profile to this process, and to all that it starts.
pub(super) fn apply(profile: &str) -> Result<(), WallError> {
    let failed = |error: &dyn std::fmt::Display| WallError::step("sandbox_init", error);
    let profile = CString::new(profile).map_err(|error| failed(&error))?;
    let mut error: *mut c_char = std::ptr::null_mut();
    // SAFETY: a C string that outlives the call, and a pointer that the call sets to a string of
    // its own, which is copied and then freed.
    unsafe {
        if sandbox_init(profile.as_ptr(), 0, &raw mut error) == 0 {
            return Ok(());
        }
        if error.is_null() {
            return Err(failed(&"no reason was given"));
        }
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        sandbox_free_error(error);
        Err(failed(&text))
    }
}
