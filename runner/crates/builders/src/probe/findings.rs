//! Compares the results for a machine with its line. Each finding is a sentence that ends with the
//! line to write, and where. Pure.

use serde::Serialize;

use super::understand::Trouble;
use super::{Is, Reached, Seen, Tried};

/// Connections that take longer are reported: Nix is blocked for this time, for each derivation.
const SLOW_MS: u64 = 2000;

/// One sentence about one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether something does not work.
    pub problem: bool,
    /// A lower-case fragment that ends in the fix, if there is something to do.
    pub text: String,
}

/// Returns the findings about a machine. `user` is the user that this process logs in as if the URI
/// names none.
pub fn examine(seen: &Seen, user: &str) -> Vec<Finding> {
    let host = Host::of(&seen.machine, user);
    let mut say = Vec::new();
    let mut add = |problem: bool, text: String| say.push(Finding { problem, text });
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
                add(false, "slow to connect: Nix stands still for that long for each build; look at DNS and at `UseDNS` of its sshd".to_owned());
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
    for Tried { system, features, result } in &seen.builds {
        let with = if features.is_empty() {
            String::new()
        } else {
            format!(" with {}", features.join(", "))
        };
        match result {
            Ok(ms) => add(false, format!("builds for {system}{with} ({ms} ms)")),
            Err(Trouble::NotPrivileged) if privileged => {
                privileged = false;
                add(true, host.trust());
            }
            Err(Trouble::NotPrivileged) => {}
            Err(Trouble::Lacks(is)) => {
                let missing: Vec<&str> = missing(features, is).collect();
                if missing.is_empty() {
                    add(true, host.platform(system, is));
                } else {
                    add(true, host.features(&missing, is));
                }
            }
            Err(Trouble::TooLong) => add(
                true,
                format!(
                    "a build for {system}{with} did not end in time; are all its slots busy (`hookrun builders list`)? otherwise try it by hand: \
                     `nix-build` with `--max-jobs 0 --builders '{}'`",
                    seen.line
                ),
            ),
            Err(Trouble::Other(why)) => {
                add(true, format!("a build for {system}{with} failed: {why}; {}", host.try_it()));
            }
        }
    }
    say
}

/// Returns the features of the line that the machine does not have.
fn lacks(add: &mut dyn FnMut(bool, String), seen: &Seen, is: &Is, host: &Host) {
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
            format!("also has {}, which column 6 of its line does not claim", unclaimed.join(", ")),
        );
    }
}

fn missing<'a>(features: &'a [String], is: &'a Is) -> impl Iterator<Item = &'a str> {
    features.iter().filter(|feature| !is.features.contains(feature)).map(String::as_str)
}

/// How findings name a machine.
struct Host {
    /// `on builder`
    on: String,
    user: String,
    /// The destination of ssh, if the machine is reached by ssh.
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

    fn features(&self, lacking: &[&str], is: &Is) -> String {
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

    fn platform(&self, system: &str, is: &Is) -> String {
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

    fn seen(line: &str) -> Seen {
        let line = machines::parse(line, "x86_64-linux").machines.remove(0);
        Seen {
            machine: line.uri.clone(),
            line,
            reached: Ok(Reached { ms: 350, version: Some("2.26.3".to_owned()), trusted: None }),
            is: Some(Is {
                system: "x86_64-linux".to_owned(),
                features: vec!["benchmark".to_owned()],
            }),
            builds: Vec::new(),
        }
    }

    fn tried(system: &str, features: &[&str], result: Result<u64, Trouble>) -> Tried {
        Tried {
            system: system.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            result,
        }
    }

    #[test]
    fn sentences() {
        let line = "ssh-ng://nix@m1 x86_64-linux,aarch64-linux - 4 2 benchmark,kvm";
        let is = seen(line).is.unwrap();
        let machines = [
            (
                "unreachable",
                Seen {
                    reached: Err("failed to start SSH connection to 'm1'".to_owned()),
                    ..seen(line)
                },
            ),
            (
                "not a host",
                Seen { reached: Err("no such store".to_owned()), ..seen("/srv/builder") },
            ),
            (
                "works",
                Seen {
                    builds: vec![tried("x86_64-linux", &["benchmark"], Ok(800))],
                    ..seen("ssh://m2 - - 1 1 benchmark")
                },
            ),
            (
                "untrusted",
                Seen {
                    is: None,
                    builds: vec![
                        tried("x86_64-linux", &[], Err(Trouble::NotPrivileged)),
                        tried("aarch64-linux", &[], Err(Trouble::NotPrivileged)),
                    ],
                    ..seen(line)
                },
            ),
            (
                "claims too much",
                Seen {
                    builds: vec![
                        tried("x86_64-linux", &["benchmark"], Ok(700)),
                        tried("aarch64-linux", &[], Err(Trouble::Lacks(is))),
                    ],
                    ..seen(line)
                },
            ),
            (
                "slow and busy",
                Seen {
                    reached: Ok(Reached { ms: 4100, version: None, trusted: Some(false) }),
                    builds: vec![
                        tried("x86_64-linux", &[], Err(Trouble::TooLong)),
                        tried(
                            "x86_64-linux",
                            &[],
                            Err(Trouble::Other(
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
