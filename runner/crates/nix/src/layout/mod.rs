//! Owner and mode of every directory and file of hookrun. Only this module creates them, checks
//! them, and corrects them. SECURITY.md has the same table with the reasons.
//!
//! Modes are set explicitly, because a process inherits an arbitrary umask.

mod directory;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hookrun_system::stat::mode_of;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use sha2::{Digest as _, Sha256};

pub use directory::{Directory, Use};

use crate::dirs::{Dirs, SYSTEM_RUNTIME, SYSTEM_STATE};

/// The access of users other than the owner to an entry of a system installation. In an
/// installation of a plain user they have no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Directory: everybody may add files, nobody may list them, and only the owner of a file may
    /// remove it. Build users hand over events of the diff hook in it.
    Add,
    /// Directory: everybody may pass through and list.
    Pass,
    /// Directory or file: only the owner has access.
    Nothing,
}

/// The owner of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The owner of the state directory: root, or the plain user.
    Installation,
    /// `[worker] user`, if it is set.
    Plugins,
}

/// A directory or file in the state directory.
#[derive(Debug, Clone, Copy)]
struct Entry {
    name: &'static str,
    kind: FileType,
    access: Access,
    owner: Owner,
}

const fn directory(name: &'static str, access: Access) -> Entry {
    Entry { name, kind: FileType::Directory, access, owner: Owner::Installation }
}

const fn file(name: &'static str) -> Entry {
    Entry { name, kind: FileType::RegularFile, access: Access::Nothing, owner: Owner::Installation }
}

/// The state directory itself.
const STATE: Entry = directory("", Access::Pass);
/// The spool, and each fallback directory.
const SPOOL: Entry = directory("spool", Access::Add);
/// All entries. Builder selection creates the contents of `builders` in the same way.
const ENTRIES: [Entry; 20] = [
    STATE,
    SPOOL,
    directory("rejected", Access::Nothing),
    directory("journal", Access::Nothing),
    directory("artifacts", Access::Nothing),
    directory("verdicts", Access::Nothing),
    directory("policy-state", Access::Nothing),
    directory("verifications", Access::Nothing),
    directory("builders", Access::Nothing),
    directory("object-stores", Access::Pass),
    directory("mail", Access::Pass),
    Entry { owner: Owner::Plugins, ..directory("plugin-state", Access::Nothing) },
    Entry { owner: Owner::Plugins, ..directory("uploads", Access::Nothing) },
    Entry { owner: Owner::Plugins, ..directory("presence", Access::Nothing) },
    Entry { owner: Owner::Plugins, ..directory("mail-progress", Access::Nothing) },
    file("worker.lock"),
    file("waiter.lock"),
    file("worker.log"),
    file("worker.json"),
    file("last-config.json"),
];

/// The mode of a directory that only its owner can access.
const PRIVATE: u32 = 0o700;
/// The permission bits, without the type of the file.
const PERMISSIONS: u32 = 0o7777;
/// The bits of a mode that let group and others write.
const OTHERS_WRITE: u32 = 0o022;
/// The bits of a mode for group and others.
const OTHERS: u32 = 0o077;
/// The bit that lets only the owner of a file remove it from a directory.
const STICKY: u32 = 0o1000;
/// The umask of hookrun's own processes: files are readable unless they are made private.
const UMASK: u32 = 0o022;
/// The parent of the last fallback of a user who is not root. Unlike /tmp, it survives a restart of
/// the machine (FHS 3.0, 5.15).
const COMMON_PARENT: &str = "/var/tmp";
/// The prefix of that fallback's name; the user's number and a hash follow.
const OWN_PREFIX: &str = "hookrun-spool-";
/// The number of names that are read in the common directory, in which every user may create any
/// number.
const MOST_LISTED: usize = 100_000;

impl Entry {
    /// Returns the mode of a new entry.
    fn mode(self, system: bool) -> u32 {
        match (self.kind, self.access, system) {
            (FileType::Directory, Access::Add, true) => 0o1733,
            (FileType::Directory, Access::Pass, true) => 0o755,
            (FileType::Directory, ..) => PRIVATE,
            _ => 0o600,
        }
    }

    /// Returns whether this mode allows what the entry needs, and no more.
    fn admits(self, mode: u32, own_group: bool, system: bool) -> bool {
        let wanted = self.mode(system);
        match self.access {
            // The operator may choose a group of build users instead of everybody.
            Access::Add if system => mode == wanted || (own_group && mode == 0o1730),
            Access::Pass if system => {
                mode & 0o700 == 0o700
                    && mode & OTHERS_WRITE == 0
                    && (mode & 0o001 != 0 || (own_group && mode & 0o010 != 0))
            }
            // `hookrun ci --private` creates this for build users.
            Access::Add if mode == 0o1733 => true,
            _ => mode & 0o700 == wanted & 0o700 && mode & OTHERS == 0,
        }
    }
}

/// An entry with another owner, mode or type than in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongEntry {
    /// The entry.
    pub path: PathBuf,
    /// The problem, and the command that corrects it.
    pub message: String,
    entry: &'static str,
    repair: Option<Repair>,
}

/// The result of correcting an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The problem, and the command that corrects it if this user could not.
    pub message: String,
    /// Whether it is correct now.
    pub done: bool,
}

/// The change that corrects an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Repair {
    owner: Option<u32>,
    mode: Option<u32>,
}

/// Sets the umask of this process. Must be called before it has threads.
pub fn set_umask() {
    rustix::process::umask(hookrun_system::stat::mode(UMASK));
}

/// Creates a spool directory, and the missing directories above it.
///
/// # Errors
/// Returns the error of the system.
pub fn make_spool(spool: &Path) -> std::io::Result<()> {
    let system = rustix::process::geteuid().is_root();
    if let Some(parent) = spool.parent() {
        make_all(parent, STATE.mode(system))?;
    }
    make(spool, SPOOL.mode(system))
}

/// Creates the directories that hooks need before any worker runs (the state directory, the spool
/// and its fallbacks), and corrects existing ones. Returns what was corrected and what could not
/// be.
///
/// # Errors
/// The spool cannot be created.
pub fn prepare(dirs: &Dirs) -> std::io::Result<Vec<Repaired>> {
    make_spool(&dirs.spool())?;
    // If the file system has no space, the error is reported when the directory is needed.
    let _made = make(&dirs.rejected(), PRIVATE);
    if rustix::process::geteuid().is_root() {
        for fallback in fallbacks(dirs).into_iter().filter(|path| {
            dirs.state == Path::new(SYSTEM_STATE) || !path.starts_with(SYSTEM_RUNTIME)
        }) {
            let _made = make_spool(&fallback);
        }
    }
    Ok(repair(dirs))
}

/// Creates a directory with exactly this mode, if it does not exist.
///
/// # Errors
/// Returns the error of the system.
pub fn make(path: &Path, mode: u32) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(mode & 0o700).create(path) {
        // The mode is set by descriptor. In a private directory nobody else can have replaced the
        // entry, and in others a link is not followed.
        Ok(()) => {
            let made = Directory::open(path, Use::List)?;
            Ok(rustix::fs::fchmod(&made, hookrun_system::stat::mode(mode))?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a directory and all missing directories above it with this mode.
///
/// # Errors
/// Returns the error of the system.
pub fn make_all(path: &Path, mode: u32) -> std::io::Result<()> {
    match make(path, mode) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(error)?;
            make_all(parent, mode)?;
            make(path, mode)
        }
        result => result,
    }
}

/// Creates a directory that only its owner can access, and the missing directories above it with
/// the mode of the state directory.
///
/// # Errors
/// Returns the error of the system.
pub fn make_own(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        make_all(parent, STATE.mode(rustix::process::geteuid().is_root()))?;
    }
    make(path, PRIVATE)
}

/// Returns the directories for events if the spool cannot be written, in order of preference: one
/// beside the state directory, where only its owner can create entries; then, for a system
/// installation, one in memory, which is another file system and is lost when the machine stops.
pub fn fallbacks(dirs: &Dirs) -> Vec<PathBuf> {
    let mut beside = dirs.state.clone().into_os_string();
    beside.push("-fallback");
    let memory = Path::new(SYSTEM_RUNTIME).join("fallback").join(short_hash(&dirs.state));
    vec![PathBuf::from(beside), memory]
}

/// Returns the last fallback of a user who is not root and can create none of [`fallbacks`]: the
/// user's own directory in a place where every user may create one.
pub fn own_fallback(dirs: &Dirs, uid: u32) -> PathBuf {
    Path::new(COMMON_PARENT).join(format!("{OWN_PREFIX}{uid}-{}", short_hash(&dirs.state)))
}

/// Returns the existing directories at [`own_fallback`] of all users.
pub fn own_fallbacks(dirs: &Dirs) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let end = format!("-{}", short_hash(&dirs.state));
    let Ok(common) = Directory::open(Path::new(COMMON_PARENT), Use::List) else {
        return Vec::new();
    };
    let names = common
        .names()
        .take(MOST_LISTED)
        .filter(|name| name.starts_with(OWN_PREFIX.as_bytes()) && name.ends_with(end.as_bytes()));
    let paths = names.map(|name| common.path().join(std::ffi::OsStr::from_bytes(&name)));
    paths.collect()
}

/// Returns a hash that distinguishes several installations on one machine.
fn short_hash(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(path.as_os_str().as_bytes()));
    format!("{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// Returns whether this path is in the directory where every user may create entries.
pub fn is_in_common(path: &Path) -> bool {
    path.parent() == Some(Path::new(COMMON_PARENT))
}

/// Returns whether the user owns this directory and no other user can change its contents.
pub fn is_of_user_alone(stat: &Stat, uid: u32) -> bool {
    stat.st_uid == uid && mode_of(stat) & OTHERS_WRITE == 0
}

/// Returns whether root owns this directory and others can at most add files.
pub fn is_shared_by_root(stat: &Stat) -> bool {
    stat.st_uid == 0 && (mode_of(stat) & OTHERS_WRITE == 0 || mode_of(stat) & STICKY != 0)
}

/// Returns the existing entries with a wrong owner, mode or type.
pub fn examine(dirs: &Dirs) -> Vec<WrongEntry> {
    let Ok(state) = rustix::fs::stat(&dirs.state) else { return Vec::new() };
    let owner = state.st_uid;
    let entries = ENTRIES.iter().filter_map(|entry| {
        let path =
            if entry.name.is_empty() { dirs.state.clone() } else { dirs.state.join(entry.name) };
        look(entry, &path, owner)
    });
    let fallbacks = fallbacks(dirs).into_iter().filter_map(|path| look(&SPOOL, &path, owner));
    entries.chain(fallbacks).collect()
}

fn look(entry: &Entry, path: &Path, owner: u32) -> Option<WrongEntry> {
    // The state directory may be a link, created by the owner of its parent.
    let flags = if entry.name.is_empty() { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = rustix::fs::statat(rustix::fs::CWD, path, flags).ok()?;
    judge(*entry, path, &stat, owner)
}

/// Returns the problem of one entry.
fn judge(entry: Entry, path: &Path, stat: &Stat, owner: u32) -> Option<WrongEntry> {
    let (shown, kind) = (path.display().to_string(), FileType::from_raw_mode(stat.st_mode));
    let wrong = |message: String, repair: Option<Repair>| {
        Some(WrongEntry { path: path.to_owned(), message, entry: entry.name, repair })
    };
    if kind == FileType::Symlink {
        let what = "is a symbolic link, which hooks and worker do not follow";
        let fix = "replace it by a directory or a bind mount, or set HOOKRUN_STATE_DIR";
        return wrong(format!("{shown} {what}; {fix}"), None);
    }
    if kind != entry.kind {
        let expected =
            if entry.kind == FileType::Directory { "a directory" } else { "a regular file" };
        return wrong(
            format!("{shown} is not {expected}; move it away, and hookrun creates it again"),
            None,
        );
    }
    let system = owner == 0;
    let (mode, wanted) = (mode_of(stat) & PERMISSIONS, entry.mode(system));
    let is_foreign = entry.owner == Owner::Installation && stat.st_uid != owner;
    let own_group = stat.st_gid != 0;
    let is_open = !entry.admits(mode, own_group, system);
    if !is_foreign && !is_open {
        return None;
    }
    let mut parts = Vec::new();
    let mut commands = Vec::new();
    if is_foreign {
        parts.push(format!("belongs to uid {}, not to uid {owner}", stat.st_uid));
        commands.push(format!("chown {owner} {shown}"));
    }
    if is_open {
        parts.push(format!("has mode {mode:04o}, {}", harm(entry, mode, system)));
        commands.push(format!("chmod {wanted:04o} {shown}"));
    }
    let repair = Repair { owner: is_foreign.then_some(owner), mode: is_open.then_some(wanted) };
    wrong(format!("{shown} {}; run `{}`", parts.join(" and "), commands.join(" && ")), Some(repair))
}

/// Describes the consequence of a wrong mode.
fn harm(entry: Entry, mode: u32, system: bool) -> &'static str {
    let others_write = mode & OTHERS_WRITE != 0;
    match entry.access {
        _ if mode & 0o700 != entry.mode(system) & 0o700 && mode & 0o600 != 0o600 => {
            "so its owner cannot use it"
        }
        Access::Add if system && others_write && mode & STICKY == 0 => {
            "so every user may remove events of others"
        }
        Access::Add if system && !others_write => {
            "so diff hooks, which run as build users, cannot hand over events"
        }
        Access::Add if others_write => "so other users may add and remove events",
        Access::Pass if system && !others_write => {
            "so build users and plugins cannot reach its contents"
        }
        _ if others_write => "so other users may change it",
        _ => "so other users may read it",
    }
}

/// Corrects what [`examine`] finds, if this user may. Returns one line for each entry.
pub fn repair(dirs: &Dirs) -> Vec<Repaired> {
    let repaired = examine(dirs).into_iter().map(|wrong| match set_right(&wrong) {
        Ok(true) => {
            let (what, _) = wrong.message.split_once("; run `").unwrap_or((&wrong.message, ""));
            Repaired { message: format!("{what}; this is corrected now"), done: true }
        }
        Ok(false) => Repaired { message: wrong.message, done: false },
        Err(error) => Repaired { message: format!("{} ({error})", wrong.message), done: false },
    });
    repaired.collect()
}

/// Corrects an entry. Returns whether it was possible.
fn set_right(wrong: &WrongEntry) -> rustix::io::Result<bool> {
    let Some(Repair { owner, mode }) = wrong.repair else { return Ok(false) };
    let nofollow = if wrong.entry.is_empty() { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | nofollow;
    let open = rustix::fs::open(&wrong.path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&open)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1 {
        // The file has another name as well.
        return Ok(false);
    }
    if let Some(owner) = owner {
        rustix::fs::fchown(&open, Some(Uid::from_raw(owner)), None::<Gid>)?;
    }
    if let Some(mode) = mode {
        rustix::fs::fchmod(&open, hookrun_system::stat::mode(mode))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
