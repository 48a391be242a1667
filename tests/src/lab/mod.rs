//! The lab: a private Nix in a directory of its own, with hookrun as its hooks, made by a
//! [`Scene`]. Tests read as small stories:
//!
//! ```no_run
//! use hookrun_tests::lab::{Scene, Script};
//!
//! let scene = Scene::new()
//!     .signing_key("lab-1")
//!     .config("[worker]\nstart = \"none\"\n")
//!     .derivation("alpha", Script::text("hello"))
//!     .derivation("beta", Script::naming(["alpha"]));
//! scene.build("beta").expect_success();
//! scene.drain().expect_success();
//! ```
//!
//! Scenes share nothing but the machine's build users, so tests may run at the same time. Nothing
//! below `/nix` is touched (locks on build users excepted, where the machine's own Nix has the
//! same). A scene's directory goes when it is dropped, and what still runs in it is ended;
//! `HOOKRUN_LAB_KEEP=1` keeps the directory.

mod boundary;
mod build_hook;
mod journal;
mod machine;
mod need;
mod ran;
pub mod s3;
mod scene;
mod script;
mod sshd;

pub use boundary::{Boundary, Point};
pub use build_hook::{Answered, answers, build_hook, conversation};
pub use journal::Attempt;
pub use machine::{
    BUILD_GROUP, hookrun_program, is_root, minor_version, require_build_users, require_nix,
    shared_directory,
};
pub use need::{MAY_SKIP, Need, SKIPPED, require};
pub use ran::Ran;
pub use scene::{Scene, SecondStore};
pub use script::{Script, nix_string};
pub use sshd::Sshd;
