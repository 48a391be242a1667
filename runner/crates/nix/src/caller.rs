//! Finds out which command and user called Nix, and the version of that Nix, as far as a hook can
//! see it. The result is used only in reports, never for a decision.
//!
//! The parent of a hook is the Nix that builds. It is either the command itself or a process of the
//! daemon, which writes the process id of its client into its own first argument (`daemon.cc` of
//! Nix 2.3 and later, for a daemon that was started as `nix-daemon --daemon`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use hookrun_system::process::{self, arguments_of};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// The longest command that is kept, in characters.
const MAX_COMMAND: usize = 300;
/// The longest version that is kept, in characters.
const MAX_VERSION: usize = 60;
/// The interval at which a program is checked.
const PAUSE: Duration = Duration::from_millis(2);
/// Words in the names of settings and arguments whose values are secret.
const SECRET: [&str; 5] = ["token", "secret", "password", "passwd", "key"];

/// The user and the command that called Nix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Caller {
    /// The user's name, or its number.
    pub user: Option<String>,
    /// The command, without values that may be secret.
    pub command: Option<String>,
    /// The version that Nix reports, such as `2.8.0`.
    pub nix: Option<String>,
}

impl Caller {
    /// Finds the caller of the Nix that called this hook, which is `nix`. Takes at most `patience`.
    pub fn find(nix: Option<Pid>, patience: Duration) -> Self {
        let Some(parent) = nix.map(|pid| pid.as_raw_nonzero().get()) else {
            return Self::default();
        };
        let of_parent = arguments_of(parent);
        let by = match client_of(&of_parent) {
            Some(client) => Some((client, arguments_of(client))),
            // The daemon does not report for which client it builds.
            None if is_daemon(&of_parent) => None,
            None => Some((parent, of_parent.clone())),
        };
        let (user, command) = match by {
            Some((pid, command)) => (user_of(pid), (!command.is_empty()).then(|| shown(&command))),
            None => (None, None),
        };
        Self {
            user,
            command,
            nix: program_of(parent, &of_parent).and_then(|program| version(&program, patience)),
        }
    }
}

fn is_daemon(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|program| base(program) == "nix-daemon")
}

/// Returns the client of a process of the daemon.
fn client_of(arguments: &[String]) -> Option<i32> {
    match arguments {
        [_, client] if is_daemon(arguments) => client.parse().ok(),
        _ => None,
    }
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the name of the user that owns a process. Reads /etc/passwd itself: a name service could
/// block, and Nix is blocked meanwhile.
fn user_of(pid: i32) -> Option<String> {
    let uid = process::owner_of(pid)?;
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    Some(name.unwrap_or_else(|| format!("uid {uid}")))
}

/// Returns the command as a user would type it, on one line and without secrets.
fn shown(arguments: &[String]) -> String {
    let mut words: Vec<String> = Vec::new();
    let (mut names_secret, mut named) = (false, 0_u8);
    for (index, argument) in arguments.iter().enumerate() {
        let is_secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            SECRET.iter().any(|word| name.contains(word))
        };
        let word = if index == 0 { base(argument) } else { argument.as_str() };
        // `--argstr NAME VALUE`, `--option NAME VALUE`, `--access-tokens VALUE`.
        let hidden = named == 1 && names_secret;
        named = named.saturating_sub(1);
        if named == 1 {
            names_secret = is_secret(word);
        } else if matches!(word, "--argstr" | "--arg" | "--option") {
            (named, names_secret) = (2, false);
        } else if named == 0 && !hidden && word.starts_with("--") && is_secret(word) {
            (named, names_secret) = (1, true);
        }
        words.push(if hidden { "***".to_owned() } else { quoted(word) });
    }
    let command = words.join(" ");
    if command.chars().count() > MAX_COMMAND {
        let cut: String = command.chars().take(MAX_COMMAND).collect();
        format!("{cut}...")
    } else {
        command
    }
}

/// Quotes a word for a POSIX shell, on one line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.-_+=:,%@^#~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        let line: String = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("'{}'", line.replace('\'', r"'\''"))
    }
}

/// Returns the program that a process runs, from the kernel or from its first argument.
fn program_of(pid: i32, arguments: &[String]) -> Option<PathBuf> {
    if let Some(program) = process::program_of(pid) {
        return Some(program);
    }
    // The process belongs to another user.
    let name = arguments.first()?;
    if name.starts_with('/') {
        return Some(PathBuf::from(name));
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Returns the version in the store path, such as `2.18.1` in
/// `/nix/store/<hash>-nix-2.18.1/bin/nix`, or else the version that the program reports.
fn version(program: &Path, patience: Duration) -> Option<String> {
    let program = std::fs::canonicalize(program).ok()?;
    if !base(&program.to_string_lossy()).starts_with("nix") {
        return None;
    }
    let directory = program.parent()?.parent()?.file_name()?.to_string_lossy().into_owned();
    if let Some((_, named)) = directory.split_once('-') {
        let version = named.strip_prefix("nix-").or_else(|| named.strip_prefix("lix-"));
        if let Some(version) = version.filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))
        {
            return Some(version.chars().take(MAX_VERSION).collect());
        }
    }
    // `nix (Nix) 2.8.0`
    let says = said(&program, patience)?;
    let line = says.lines().next()?;
    let version = line.rsplit(' ').next().filter(|text| !text.is_empty())?;
    Some(version.chars().filter(|c| !c.is_control()).take(MAX_VERSION).collect())
}

/// Returns the output of `program --version`, if it ends in time.
fn said(program: &Path, patience: Duration) -> Option<String> {
    let deadline = Instant::now().checked_add(patience)?;
    let mut child = super::command(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            _ => {
                let _gone = child.kill();
                let _ended = child.wait();
                return None;
            }
        }
    }
    let mut says = String::new();
    let mut stdout = child.stdout.take()?;
    // One line fits into the pipe.
    std::io::Read::read_to_string(&mut stdout, &mut says).ok()?;
    Some(says)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &str) -> Vec<String> {
        command.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_process_of_the_daemon_names_its_client() {
        assert_eq!(client_of(&words("nix-daemon 4711")), Some(4711));
        assert_eq!(client_of(&words("/nix/store/x-nix-2.8.0/bin/nix-daemon 4711")), Some(4711));
        assert_eq!(client_of(&words("nix-daemon --daemon")), None);
        assert!(is_daemon(&words("nix-daemon")) && !is_daemon(&words("nix-build")));
        assert_eq!(client_of(&words("nix-build 4711")), None);
    }

    #[test]
    fn a_command_is_shown_without_secrets() {
        let commands = [
            "/usr/bin/nix-build --check -A hello",
            "nix-build --argstr token s3cret --argstr name x",
            "nix --option access-tokens github.com=s3cret build .#hello",
            "nix --access-tokens github.com=s3cret build",
            "nix --secret-key-files /etc/key build",
        ]
        .map(|command| shown(&words(command)));
        insta::assert_snapshot!(commands.join("\n"), @"
        nix-build --check -A hello
        nix-build --argstr token *** --argstr name x
        nix --option access-tokens *** build .#hello
        nix --access-tokens *** build
        nix --secret-key-files *** build
        ");
        let odd = [
            "nix-build".to_owned(),
            "-E".to_owned(),
            "let a = 'b'; in\n\u{1b}[2J".to_owned(),
            String::new(),
        ];
        assert_eq!(shown(&odd), r"nix-build -E 'let a = '\''b'\''; in  [2J' ''");
        assert!(shown(&words(&"x ".repeat(400))).chars().count() <= MAX_COMMAND + 3);
    }

    #[test]
    fn a_version_comes_from_the_store_path_or_from_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("00bgd045z0d4icpbc2yyz4gx48ak44la-nix-2.18.1/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("nix"), "").unwrap();
        assert_eq!(version(&bin.join("nix"), Duration::ZERO).unwrap(), "2.18.1");
        std::fs::write(bin.join("sh"), "").unwrap();
        assert_eq!(version(&bin.join("sh"), Duration::ZERO), None, "another program is not run");
    }

    #[test]
    fn the_caller_of_this_process_is_found() {
        let caller = Caller::find(rustix::process::getppid(), Duration::ZERO);
        assert!(caller.user.is_some() && caller.command.is_some(), "{caller:?}");
    }
}
