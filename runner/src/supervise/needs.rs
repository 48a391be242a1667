//! Computes the permissions of a runner's sandbox from the grants of its plugins. Also creates the
//! directories that it writes to, and gives them to its user.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use url::Url;

use hookrun_capability::grants::Effective;
use hookrun_capability::{SandboxNeeds, Services};
use hookrun_config::{Config, StoreScope};
use hookrun_host::wall::{Identity, User, Wall};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;
use hookrun_nix::layout;

/// The mode of a directory that the runner's user writes to, and of missing directories above it.
const DIRECTORY_MODE: u32 = 0o700;
const PARENT_MODE: u32 = 0o755;

/// The port for name resolution over TCP, which long answers need (RFC 7766).
const DNS: u16 = 53;

/// The files that name resolution reads (resolv.conf(5), nsswitch.conf(5), gai.conf(5)), including
/// the targets of links.
const NAMES: [&str; 8] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/run/systemd/resolve",
    "/run/NetworkManager",
];
/// The places where distributions keep trusted certificate authorities.
const AUTHORITIES: [&str; 8] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];
/// The C library loads the modules of nsswitch.conf when it first resolves a name.
const LIBRARIES: [&str; 6] =
    ["/etc/ld.so.cache", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/run/current-system/sw/lib"];
/// Variables that name files with certificate authorities.
const AUTHORITY_VARIABLES: [&str; 3] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE"];
/// Variables that name a proxy.
const PROXY_VARIABLES: [&str; 6] =
    ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// Returns the user that guests run as: the user in the configuration if this process is root, else
/// the current user, without capabilities.
///
/// # Errors
/// The user does not exist; the error names the line.
pub fn identity(config: &Config) -> Result<Identity, String> {
    match &config.worker.user {
        Some(name) if rustix::process::geteuid().is_root() => User::find(name)
            .map(Identity::User)
            .map_err(|error| config.error(&["worker", "user"], error).to_string()),
        _ => Ok(Identity::Powerless),
    }
}

/// Returns the sandbox of a process that runs plugins with these capabilities on events of the Nix
/// in `nix`.
pub fn wall(
    effective: &[&Effective],
    services: &Services,
    dirs: &Dirs,
    nix: &NixDirs,
    identity: Identity,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Wall {
    let mut wall = Wall::closed(identity);
    // Native code is mapped inside the sandbox.
    wall.read.insert(dirs.artifacts());
    if effective.iter().any(|effective| effective.nix_store != StoreScope::None) {
        let store = nix.real_store.as_ref().unwrap_or(&nix.store);
        wall.read.extend([store.clone(), nix.state.join("db")]);
    }
    let needs = effective
        .iter()
        .map(|effective| services.sandbox_needs(effective, dirs))
        .fold(SandboxNeeds::default(), SandboxNeeds::and);
    wall.write.extend(needs.directories);
    wall.read.extend(needs.reads);
    wall.network = !needs.ports.is_empty();
    if wall.network {
        wall.connect.extend(needs.ports);
        wall.connect.insert(DNS);
        wall.connect.extend(PROXY_VARIABLES.iter().filter_map(|name| proxy_port(&variable(name)?)));
        wall.read.extend(NAMES.iter().chain(&AUTHORITIES).chain(&LIBRARIES).map(PathBuf::from));
        wall.read.extend(
            AUTHORITY_VARIABLES.iter().filter_map(|name| variable(name)).map(PathBuf::from),
        );
        // On NixOS the certificate authorities are links into the store.
        wall.read.insert(PathBuf::from("/etc/static/ssl"));
        wall.read.extend(nix_certificates());
    }
    wall
}

/// Returns the target of a link to the certificate authorities if it is in a store: only this path,
/// not the store.
fn nix_certificates() -> Option<PathBuf> {
    std::fs::canonicalize("/etc/ssl/certs/ca-certificates.crt").ok()
}

/// Returns the port of a proxy, such as 3128 for `http://proxy:3128`.
fn proxy_port(url: &OsString) -> Option<u16> {
    let text = url.to_str()?;
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Url::parse(&with_scheme).ok()?.port_or_known_default()
}

/// Creates the directories that a process in `wall` writes to. Those below hookrun's own state are
/// given to its user with all their contents; those that the configuration names are only created
/// if they are missing. Parents stay root's, so that the user cannot replace a directory while root
/// uses it.
///
/// # Errors
/// A directory cannot be created or given to the user; the error contains the command that does it.
pub fn make_directories(wall: &Wall, dirs: &Dirs) -> Result<(), String> {
    let user = match &wall.identity {
        Identity::User(user) => Some(user),
        Identity::Powerless => None,
    };
    for directory in &wall.write {
        let failed = |error: std::io::Error| {
            let shown = directory.display();
            let whose =
                user.map(|user| format!(" && chown -R {} {shown}", user.name)).unwrap_or_default();
            format!(
                "{shown} cannot be prepared for the user that runs plugins ({error}); run `mkdir -p {shown}{whose}`"
            )
        };
        let made = make(directory).map_err(failed)?;
        let Some(user) = user else { continue };
        let given = if directory.starts_with(&dirs.state) {
            adopt(directory, user)
        } else if made {
            std::os::unix::fs::lchown(directory, Some(user.uid), Some(user.gid))
        } else {
            Ok(())
        };
        given.map_err(failed)?;
    }
    Ok(())
}

/// Returns why this process cannot write to the directories of a service, with the fix. Called
/// inside the sandbox, so as the user that runs plugins. A directory that does not exist yet is
/// created by the worker.
pub fn unwritable(what: &str, name: &str, needs: &SandboxNeeds) -> Option<String> {
    use rustix::fs::Access;
    needs.directories.iter().find_map(|directory| {
        match rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => None,
            Err(error) => {
                let shown = directory.display();
                let user = rustix::process::geteuid().as_raw();
                Some(format!(
                    "{what} `{name}`: {shown} cannot be written by uid {user}, which runs plugins ({error}); run `chown -R {user} {shown}`"
                ))
            }
        }
    })
}

/// Creates `directory` (0700) and its missing parents (0755), in a directory that only this user
/// and root can change. Returns whether it was missing.
fn make(directory: &Path) -> std::io::Result<bool> {
    if directory.is_dir() {
        return Ok(false);
    }
    let parent = directory.parent().unwrap_or(Path::new("/"));
    layout::make_all(parent, PARENT_MODE)?;
    let found = std::fs::metadata(parent)?;
    let user = rustix::process::geteuid().as_raw();
    if (found.uid() != user && found.uid() != 0) || found.mode() & 0o022 != 0 {
        return Err(std::io::Error::other(format!(
            "{} can be changed by other users",
            parent.display()
        )));
    }
    layout::make(directory, DIRECTORY_MODE)?;
    Ok(true)
}

/// Gives files that root created before `user` was configured to the user. Skips everything that
/// does not belong to root, because another user may have created it.
fn adopt(path: &Path, user: &User) -> std::io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if found.uid() != 0 {
        return Ok(());
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            adopt(&entry?.path(), user)?;
        }
    }
    // A file with several hard links may be another user's.
    if found.is_dir() || found.nlink() == 1 {
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
