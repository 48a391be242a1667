//! The lab: a private Nix in a directory of its own, with hookrun as its hooks, made by a
//! [`Scene`]. Tests read as small stories:
//!
//! ```no_run
//! use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script};
//!
//! let file = ConfigFile::new()
//!     .plugin("keeper", PluginTable::guest("good").hooks(["post-build"]).grant("state", true));
//! let scene = Scene::new()
//!     .config(&file)
//!     .derivation("alpha", Script::text("hello"))
//!     .derivation("beta", Script::naming(["alpha"]));
//! scene.build("beta").expect_success();
//! scene.drain().expect_success();
//! ```
//!
//! Scenes share only the machine's build users, so tests may run at the same time. They change
//! nothing below `/nix`, except for locks on build users that the machine's own Nix has too. When a
//! scene is dropped, its processes are killed and its directory is removed. `HOOKRUN_LAB_KEEP=1`
//! keeps the directory.

mod boundary;
mod build_hook;
mod config_file;
pub mod http_store;
mod journal;
mod machine;
mod need;
mod observe;
mod ran;
pub mod s3;
mod scene;
mod script;
mod second_store;
mod sshd;
mod worker;

pub use boundary::{Boundary, Point};
pub use build_hook::{Answered, answers, build_hook, conversation};
pub use config_file::{ConfigFile, PluginTable, toml};
pub use journal::Attempt;
pub use machine::{
    BUILD_GROUP, hookrun_program, is_root, minor_version, require_build_users, require_nix,
    shared_directory,
};
pub use need::{MAY_SKIP, Need, SKIPPED, require};
pub use observe::most_at_once;
pub use ran::Ran;
pub use scene::Scene;
pub use script::{Script, nix_string};
pub use second_store::SecondStore;
pub use sshd::Sshd;
pub use worker::{Worker, wait_for, wait_until};
