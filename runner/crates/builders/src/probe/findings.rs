//! Compares the results for a machine with its line. Each finding is a sentence that ends with the
//! line to write, and where. Pure.

use serde::Serialize;

use super::understand::BuildFailure;
use super::{MachineFacts, ProbeResult, Reached, TestBuild};

/// The time in milliseconds from which on a connection is reported as slow, because Nix is blocked
/// for each derivation.
const SLOW_MS: u64 = 2000;

/// A statement about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineFinding {
    /// Whether something does not work.
    pub problem: bool,
    /// A lower-case sentence without a period, which ends with the fix if there is one.
    pub text: String,
}

/// Returns the findings about a machine. `user` is the user of this process, who is used if the URI
/// names none.
pub fn examine(seen: &ProbeResult, user: &str) -> Vec<MachineFinding> {
    let host = Host::of(&seen.machine, user);
    let mut say = Vec::new();
    let mut add = |problem: bool, text: String| say.push(MachineFinding { problem, text });
    match &seen.reached {
        Err(why) => {
            add(true, format!("cannot be reached: {why}; {}", host.try_it()));
            return say;
        }
        Ok(Reached { ms, version, trusted }) => {
            let version =
                version.as_ref().map(|version| format!(", Nix {version}")).unwrap_or_default();
            add(false, format!("answers in {ms} ms{version}"));
            if *ms > SLOW_MS {
                add(false, "slow to connect, and Nix is blocked for this time for each build; check DNS and `UseDNS` of its sshd".to_owned());
            }
            if *trusted == Some(false) {
                add(true, host.trust());
            }
        }
    }
    if let Some(is) = &seen.is {
        lacks(&mut add, seen, is, &host);
    }
    let mut privileged = true;
    for TestBuild { system, features, result } in &seen.builds {
        let with = if features.is_empty() {
            String::new()
        } else {
            format!(" with {}", features.join(", "))
        };
        match result {
            Ok(ms) => add(false, format!("builds for {system}{with} ({ms} ms)")),
            Err(BuildFailure::NotPrivileged) if privileged => {
                privileged = false;
                add(true, host.trust());
            }
            Err(BuildFailure::NotPrivileged) => {}
            Err(BuildFailure::Lacks(is)) => {
                let missing: Vec<&str> = missing(features, is).collect();
                if missing.is_empty() {
                    add(true, host.platform(system, is));
                } else {
                    add(true, host.features(&missing, is));
                }
            }
            Err(BuildFailure::TooLong) => add(
                true,
                format!(
                    "a build for {system}{with} did not end in time; check whether all slots are busy (`hookrun builders list`), or run `nix-build` with `--max-jobs 0 --builders '{}'`",
                    seen.line
                ),
            ),
            Err(BuildFailure::Other(why)) => {
                add(true, format!("a build for {system}{with} failed: {why}; {}", host.try_it()));
            }
        }
    }
    say
}

/// Returns the features of the line that the machine does not have.
fn lacks(add: &mut dyn FnMut(bool, String), seen: &ProbeResult, is: &MachineFacts, host: &Host) {
    let claimed: Vec<String> = seen.line.features().cloned().collect();
    let lacking: Vec<&str> = missing(&claimed, is).collect();
    if !lacking.is_empty() {
        add(true, host.features(&lacking, is));
    }
    let unclaimed: Vec<&str> = is
        .features
        .iter()
        .filter(|feature| !claimed.contains(feature))
        .map(String::as_str)
        .collect();
    if !unclaimed.is_empty() {
        add(
            false,
            format!("also has {}, which column 6 of its line does not list", unclaimed.join(", ")),
        );
    }
}

fn missing<'a>(features: &'a [String], is: &'a MachineFacts) -> impl Iterator<Item = &'a str> {
    features.iter().filter(|feature| !is.features.contains(feature)).map(String::as_str)
}

/// The names of a machine in findings.
struct Host {
    /// The place, such as `on builder`.
    on: String,
    user: String,
    /// The destination for ssh, if the machine is reached by ssh.
    ssh: Option<String>,
}

impl Host {
    fn of(uri: &str, user: &str) -> Self {
        let address = uri
            .strip_prefix("ssh-ng://")
            .or_else(|| uri.strip_prefix("ssh://"))
            .map(|rest| rest.split(['?', '/']).next().unwrap_or(rest));
        let Some(address) = address else {
            return Self { on: "on that machine".to_owned(), user: user.to_owned(), ssh: None };
        };
        let (user, host) = address.split_once('@').unwrap_or((user, address));
        Self {
            on: format!("on {host}"),
            user: user.to_owned(),
            ssh: Some(format!("{user}@{host}")),
        }
    }

    fn try_it(&self) -> String {
        match &self.ssh {
            Some(address) => {
                format!("try `ssh {address} nix-store --version` as the user that runs nix-daemon")
            }
            None => "correct column 1 of its line".to_owned(),
        }
    }

    fn trust(&self) -> String {
        let Self { on, user, .. } = self;
        format!(
            "the user `{user}` may not build there (\"you are not privileged to build derivations\"); {on} write `extra-trusted-users = {user}` \
             in /etc/nix/nix.conf and restart nix-daemon"
        )
    }

    fn features(&self, lacking: &[&str], is: &MachineFacts) -> String {
        let all: Vec<&str> =
            is.features.iter().map(String::as_str).chain(lacking.iter().copied()).collect();
        format!(
            "claims {}, but has {}; {} write `system-features = {}` in /etc/nix/nix.conf and restart nix-daemon, or remove {} from columns 6 \
             and 7 of its line",
            lacking.join(", "),
            if is.features.is_empty() { "no features".to_owned() } else { is.features.join(", ") },
            self.on,
            all.join(" "),
            lacking.join(", ")
        )
    }

    fn platform(&self, system: &str, is: &MachineFacts) -> String {
        format!(
            "claims {system}, but is {}; remove {system} from column 2 of its line, or, if it can run such programs, write `extra-platforms = \
             {system}` in /etc/nix/nix.conf {} and restart nix-daemon",
            is.system, self.on
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::machines;

    fn seen(line: &str) -> ProbeResult {
        let line = machines::parse(line, "x86_64-linux").machines.remove(0);
        ProbeResult {
            machine: line.uri.clone(),
            line,
            reached: Ok(Reached { ms: 350, version: Some("2.26.3".to_owned()), trusted: None }),
            is: Some(MachineFacts {
                system: "x86_64-linux".to_owned(),
                features: vec!["benchmark".to_owned()],
            }),
            builds: Vec::new(),
        }
    }

    fn tried(system: &str, features: &[&str], result: Result<u64, BuildFailure>) -> TestBuild {
        TestBuild {
            system: system.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            result,
        }
    }

    #[test]
    fn findings_name_the_line_to_write() {
        let line = "ssh-ng://nix@m1 x86_64-linux,aarch64-linux - 4 2 benchmark,kvm";
        let is = seen(line).is.unwrap();
        let machines = [
            (
                "unreachable",
                ProbeResult {
                    reached: Err("failed to start SSH connection to 'm1'".to_owned()),
                    ..seen(line)
                },
            ),
            (
                "not a host",
                ProbeResult { reached: Err("no such store".to_owned()), ..seen("/srv/builder") },
            ),
            (
                "works",
                ProbeResult {
                    builds: vec![tried("x86_64-linux", &["benchmark"], Ok(800))],
                    ..seen("ssh://m2 - - 1 1 benchmark")
                },
            ),
            (
                "untrusted",
                ProbeResult {
                    is: None,
                    builds: vec![
                        tried("x86_64-linux", &[], Err(BuildFailure::NotPrivileged)),
                        tried("aarch64-linux", &[], Err(BuildFailure::NotPrivileged)),
                    ],
                    ..seen(line)
                },
            ),
            (
                "claims too much",
                ProbeResult {
                    builds: vec![
                        tried("x86_64-linux", &["benchmark"], Ok(700)),
                        tried("aarch64-linux", &[], Err(BuildFailure::Lacks(is))),
                    ],
                    ..seen(line)
                },
            ),
            (
                "slow and busy",
                ProbeResult {
                    reached: Ok(Reached { ms: 4100, version: None, trusted: Some(false) }),
                    builds: vec![
                        tried("x86_64-linux", &[], Err(BuildFailure::TooLong)),
                        tried(
                            "x86_64-linux",
                            &[],
                            Err(BuildFailure::Other(
                                "writing to file: No space left on device".to_owned(),
                            )),
                        ),
                    ],
                    ..seen("m3")
                },
            ),
        ];
        let text = machines.iter().map(|(what, seen)| {
            let lines = examine(seen, "root").into_iter().map(|finding| {
                format!("  {} {}\n", if finding.problem { "!" } else { "-" }, finding.text)
            });
            format!("{what}\n{}", lines.collect::<String>())
        });
        insta::assert_snapshot!(text.collect::<String>());
    }
}
