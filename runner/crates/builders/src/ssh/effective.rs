//! Decides from the output of `ssh -G`, which includes the user's configuration, whether a call may
//! share a connection, and with which other calls. Pure, except that it reads the known host keys
//! that Nix writes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// The command that Nix has ssh run when it is connected (`libstore/ssh.cc`, since 2.17). OpenSSH
/// does not run it for a session over a shared connection.
const STARTED: &[u8] = b"echo started";
/// Options that must have these values. With any other value the call needs its own ssh.
const USUAL: [(&[u8], &[&[u8]]); 10] = [
    // Users who have configured sharing themselves keep their configuration.
    (b"controlpath", &[b"none"]),
    (b"forwardagent", &[b"no"]),
    (b"forwardx11", &[b"no"]),
    (b"remotecommand", &[b"none"]),
    (b"requesttty", &[b"auto", b"no", b"false"]),
    (b"sessiontype", &[b"default"]),
    (b"stdinnull", &[b"no"]),
    (b"forkafterauthentication", &[b"no"]),
    (b"tunnel", &[b"no", b"false"]),
    (b"stdioforward", &[b"none"]),
];
/// Forwardings, each of which belongs to one connection.
const FORWARDINGS: [&[u8]; 3] = [b"localforward", b"remoteforward", b"dynamicforward"];
/// The name of the file to which Nix writes a machine's public host key, each time in another
/// directory.
const HOST_KEY_FILE: &str = "/host-key";

/// A call that may share a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SshConfig {
    /// The key. Calls with the same key may share a connection.
    pub key: String,
    /// Whether Nix waits for `started`.
    pub started: bool,
    /// The variables that are sent to the host, as `NAME=value`.
    pub environment: Vec<Vec<u8>>,
}

impl SshConfig {
    /// Reads the output of `ssh -G`, the environment, and the program. Returns `None` if the call
    /// may not share a connection.
    pub(super) fn of(
        said: &[u8],
        environment: &[(OsString, OsString)],
        program: &Path,
    ) -> Option<Self> {
        let mut key = Sha256::new();
        key.update(program.as_os_str().as_bytes());
        // The agent that signs.
        if let Some((_, agent)) = environment.iter().find(|(name, _)| name == "SSH_AUTH_SOCK") {
            key.update(agent.as_bytes());
        }
        let mut local_command = None;
        let mut local_command_permitted = false;
        let mut sent = Vec::new();
        for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let space = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
            let (name, value) = line.split_at(space);
            let value = value.get(1..).unwrap_or_default();
            if FORWARDINGS.contains(&name)
                || USUAL.iter().any(|(known, usual)| *known == name && !usual.contains(&value))
            {
                return None;
            }
            match name {
                b"localcommand" => local_command = Some(value),
                b"permitlocalcommand" => local_command_permitted = value == b"yes",
                b"sendenv" => {
                    let permitted =
                        |(name, _): &&(OsString, OsString)| matches(value, name.as_bytes());
                    sent.extend(
                        environment
                            .iter()
                            .filter(permitted)
                            .map(|(name, value)| assignment(name, value)),
                    );
                }
                b"setenv" => sent.push(value.to_vec()),
                _ => {}
            }
            key.update(b"\n");
            key.update(name);
            if name == b"userknownhostsfile" {
                value.split(|byte| *byte == b' ').for_each(|file| known_hosts(file, &mut key));
            } else {
                key.update(value);
            }
        }
        let started = match local_command {
            _ if !local_command_permitted => false,
            None | Some(b"none") => false,
            Some(STARTED) => true,
            Some(_) => return None,
        };
        let key = format!("{:.KEY_DIGITS$x}", key.finalize());
        Some(Self { key, started, environment: sent })
    }
}

/// Number of hexadecimal digits of a key: enough that two configurations of one user never have the
/// same, and few, because the path of a socket is short (`unix(7)`).
const KEY_DIGITS: usize = 16;

fn assignment(name: &OsStr, value: &OsStr) -> Vec<u8> {
    let mut text = name.to_owned();
    text.push("=");
    text.push(value);
    text.into_vec()
}

/// Adds the identity of a file with known host keys to the key: its name, or its contents if Nix
/// wrote it for this call.
fn known_hosts(file: &[u8], key: &mut Sha256) {
    key.update(b" ");
    let path = Path::new(OsStr::from_bytes(file));
    match std::fs::read(path) {
        Ok(content) if file.ends_with(HOST_KEY_FILE.as_bytes()) => key.update(content),
        _ => key.update(file),
    }
}

/// Matches `*` and `?`, as in `SendEnv` (`ssh_config(5)`).
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => matches(rest, text),
        (Some((b'*', rest)), Some((_, after))) => matches(rest, text) || matches(pattern, after),
        (Some((b'?', rest)), Some((_, after))) => matches(rest, after),
        (Some((wanted, rest)), Some((letter, after))) => wanted == letter && matches(rest, after),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL_ANSWER: &str = "host m\nhostname m\nport 22\nforwardagent no\nforwardx11 no\nrequesttty auto\nsessiontype default\n\
        stdinnull no\nforkafterauthentication no\ntunnel false\ncontrolmaster false\nsendenv LANG\nsendenv LC_*\n";

    fn of(said: &str, environment: &[(&str, &str)]) -> Option<SshConfig> {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        SshConfig::of(said.as_bytes(), &environment, Path::new("/usr/bin/ssh"))
    }

    #[test]
    fn variables_to_send_and_the_wait_for_started_are_found() {
        let usual =
            of(USUAL_ANSWER, &[("LC_TIME", "de"), ("LANG", "C"), ("HOME", "/root")]).unwrap();
        assert_eq!(usual.environment, [b"LANG=C".to_vec(), b"LC_TIME=de".to_vec()]);
        assert!(!usual.started);
        let waits = of(
            &format!(
                "{USUAL_ANSWER}permitlocalcommand yes\nlocalcommand echo started\nsetenv A=b c\n"
            ),
            &[],
        )
        .unwrap();
        assert!(waits.started);
        assert_eq!(waits.environment, [b"A=b c".to_vec()]);
    }

    #[test]
    fn a_call_with_unusual_options_gets_its_own_connection() {
        for line in [
            "controlpath /home/u/.ssh/m",
            "forwardagent yes",
            "forwardx11 yes",
            "requesttty force",
            "sessiontype none",
            "localforward 1 [m]:1",
            "remotecommand top",
            "permitlocalcommand yes\nlocalcommand xmessage",
        ] {
            // Some options are printed twice, and both count.
            assert_eq!(of(&format!("{USUAL_ANSWER}{line}\n"), &[]), None, "{line}");
        }
    }

    #[test]
    fn calls_with_different_configurations_do_not_share() {
        let key = |said: &str, agent: &str| of(said, &[("SSH_AUTH_SOCK", agent)]).unwrap().key;
        let first = key(USUAL_ANSWER, "/a");
        assert_eq!(first, key(USUAL_ANSWER, "/a"));
        assert_eq!(first.len(), KEY_DIGITS);
        assert_ne!(first, key(USUAL_ANSWER, "/b"));
        assert_ne!(first, key(&USUAL_ANSWER.replace("port 22", "port 23"), "/a"));
        assert_ne!(first, key(&format!("{USUAL_ANSWER}identityfile /key\n"), "/a"));
    }

    #[test]
    fn a_host_key_file_of_nix_counts_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let key = |place: &str, content: &str| {
            let directory = directory.path().join(place);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("host-key"), content).unwrap();
            let line = format!("userknownhostsfile {}\n", directory.join("host-key").display());
            of(&format!("{USUAL_ANSWER}{line}"), &[]).unwrap().key
        };
        assert_eq!(key("1", "m ssh-ed25519 A"), key("2", "m ssh-ed25519 A"));
        assert_ne!(key("1", "m ssh-ed25519 A"), key("2", "m ssh-ed25519 B"));
    }

    proptest! {
        #[test]
        fn any_output_of_ssh_is_parsed(said in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SshConfig::of(&said, &[], Path::new("ssh"));
        }

        #[test]
        fn a_text_matches_itself(text in "[A-Z_]{0,8}", more in "[A-Z_]{0,8}") {
            prop_assert!(matches(text.as_bytes(), text.as_bytes()));
            let pattern = format!("{text}*");
            let longer = format!("{text}{more}");
            prop_assert!(matches(pattern.as_bytes(), longer.as_bytes()));
        }
    }
}
