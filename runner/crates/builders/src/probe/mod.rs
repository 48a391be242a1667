//! Can a machine really build for us? For `hookrun builders check`: each machine is connected to,
//! asked what it is, and given a tiny build, by the very way that builds go (Nix's own build hook
//! with this one machine), so that what fails here fails there.
//!
//! * [`understand`]: what Nix's words mean. [`findings`]: what follows, with the line to write on
//!   which machine. Both pure.
//! * This file: the effects. All are bounded in time; nothing is changed but a tiny path in both
//!   stores, which no root keeps.

pub mod findings;
pub mod understand;

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use understand::{Trouble, trouble};

use hookrun_nix::bounded;
use hookrun_nix::installed::{Flavour, Installed, Version};
use hookrun_nix::machines::MachineLine;

/// A feature that no machine has: a build that requires it fails at once, with a message that says
/// what the machine is.
const NO_SUCH_FEATURE: &str = "hookrun-probe";
/// Machines that are tried at the same time.
const AT_ONCE: usize = 32;
/// The release in which `nix store ping --json` came.
const PING_AS_JSON: Version = Version(2, 15, 0);

/// What was seen of one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// Its line.
    #[serde(skip)]
    pub line: MachineLine,
    /// Its store URI.
    pub machine: String,
    /// The connection.
    pub reached: Result<Reached, String>,
    /// What it says it is.
    pub is: Option<Is>,
    /// A build for each system that is claimed.
    pub builds: Vec<Tried>,
}

/// A store that answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reached {
    /// How long it took, in milliseconds, a process of Nix included.
    pub ms: u64,
    /// Its Nix, where it says so.
    pub version: Option<String>,
    /// Does it trust us, where it says so?
    pub trusted: Option<bool>,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Is {
    /// Its system.
    pub system: String,
    /// Its features.
    pub features: Vec<String>,
}

/// A build that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// For this system.
    pub system: String,
    /// Requiring these features.
    pub features: Vec<String>,
    /// How long it took, in milliseconds; or what went wrong.
    pub result: Result<u64, Trouble>,
}

/// What tries machines.
#[derive(Debug)]
pub struct Prober<'a> {
    /// The Nix that builds go through.
    pub nix: &'a Installed,
    /// The most that one step with one machine takes.
    pub limit: Duration,
    /// Makes builds unique, with the machine's place in the list.
    pub nonce: String,
}

impl Prober<'_> {
    /// Tries `machines`, many at once; the answers are in their order.
    pub fn all(&self, machines: &[MachineLine]) -> Vec<Seen> {
        let next = Mutex::new(0..machines.len());
        let seen = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..machines.len().min(AT_ONCE) {
                scope.spawn(|| {
                    while let Some(index) = next.lock().ok().and_then(|mut next| next.next()) {
                        let Some(line) = machines.get(index) else { break };
                        let one = self.one(line, index);
                        if let Ok(mut seen) = seen.lock() {
                            seen.push((index, one));
                        }
                    }
                });
            }
        });
        let mut seen = seen.into_inner().unwrap_or_default();
        seen.sort_by_key(|(index, _)| *index);
        seen.into_iter().map(|(_, seen)| seen).collect()
    }

    fn one(&self, line: &MachineLine, index: usize) -> Seen {
        // Two lines may name one machine; builds of theirs that were the same would wait for each
        // other, or one would fail for the other.
        let nonce = format!("{}-{index}", self.nonce);
        let mut seen = Seen {
            line: line.clone(),
            machine: line.uri.to_string(),
            reached: self.reach(line),
            is: None,
            builds: Vec::new(),
        };
        if seen.reached.is_err() {
            return seen;
        }
        let first =
            line.systems.first().cloned().unwrap_or_else(|| self.nix.setting("system").to_owned());
        let mandatory = line.mandatory_features.to_vec();
        // One that cannot be built tells what the machine is.
        let nothing: Vec<String> =
            mandatory.iter().cloned().chain([NO_SUCH_FEATURE.to_owned()]).collect();
        match self.build(line, &nonce, &first, &nothing) {
            Err(Trouble::Lacks(is)) => seen.is = Some(is),
            Err(trouble @ Trouble::NotPrivileged) => {
                seen.builds.push(Tried {
                    system: first,
                    features: mandatory,
                    result: Err(trouble),
                });
                return seen;
            }
            // Whatever else is wrong, the real builds tell.
            Err(_) | Ok(_) => {}
        }
        let systems = if line.systems.is_empty() { vec![first] } else { line.systems.to_vec() };
        for (index, system) in systems.into_iter().enumerate() {
            let ask = |is: Option<&Is>| {
                let features = if index == 0 { able(line, is) } else { mandatory.clone() };
                let result = self.build(line, &nonce, &system, &features);
                Tried { system: system.clone(), features, result }
            };
            let mut tried = ask(seen.is.as_ref());
            if let (None, Err(Trouble::Lacks(is))) = (&seen.is, &tried.result) {
                seen.is = Some(is.clone());
                tried = ask(seen.is.as_ref());
            }
            seen.builds.push(tried);
        }
        seen
    }

    /// Connects and says hello.
    fn reach(&self, line: &MachineLine) -> Result<Reached, String> {
        let Installed { program, flavour, version, .. } = self.nix;
        let mut command = Command::new(program);
        self.quiet(&mut command, None);
        let as_json = *flavour == Flavour::Nix && *version >= PING_AS_JSON;
        command.args([
            "--extra-experimental-features",
            "nix-command",
            "store",
            "ping",
            "--store",
            &with_keys(line),
        ]);
        if as_json {
            command.arg("--json");
        }
        let said = bounded::run(&mut command, self.limit).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => format!("no answer within {:?}", self.limit),
            _ => format!("`{}` cannot be started ({error})", program.display()),
        })?;
        if !said.status.success() {
            return Err(understand::last_error(&said.stderr)
                .unwrap_or_else(|| "Nix says nothing about why".to_owned()));
        }
        let ms = u64::try_from(said.took.as_millis()).unwrap_or(u64::MAX);
        let (version, trusted) = understand::hello(&format!("{}\n{}", said.stdout, said.stderr));
        Ok(Reached { ms, version, trusted })
    }

    /// A build that takes no time, on this machine and on no other.
    fn build(
        &self,
        line: &MachineLine,
        nonce: &str,
        system: &str,
        features: &[String],
    ) -> Result<u64, Trouble> {
        let mut command = Command::new(self.nix.program.with_file_name("nix-build"));
        let mut claimed = line.clone();
        // The stock hook goes by the line; what it claims here is what is asked for.
        claimed.supported_features =
            line.supported_features.iter().chain(features).cloned().collect();
        claimed.systems = std::iter::once(system.to_owned()).collect();
        self.quiet(&mut command, Some(&claimed.line_for_stock_hook()));
        command.args(["--no-out-link", "--expr", &expression(nonce, system, features)]);
        let said = bounded::run(&mut command, self.limit).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => Trouble::TooLong,
            _ => Trouble::Other(format!("`nix-build` cannot be started ({error})")),
        })?;
        if said.status.success() {
            Ok(u64::try_from(said.took.as_millis()).unwrap_or(u64::MAX))
        } else {
            let features =
                features.iter().filter(|feature| *feature != NO_SUCH_FEATURE).cloned().collect();
            Err(trouble(&said.stderr, &Is { system: system.to_owned(), features }))
        }
    }

    /// Without hooks of ours, substitutes and colours; with `builders` as the only place to build.
    /// As arguments: a machine that is reached without ssh (`ssh://localhost`) inherits the
    /// environment, and is not meant.
    fn quiet(&self, command: &mut Command, builders: Option<&str>) {
        hookrun_nix::scrub(command);
        let mut option = |name: &str, value: &str| {
            command.args(["--option", name, value]);
        };
        option("post-build-hook", "");
        option("run-diff-hook", "false");
        option("substituters", "");
        if let Some(builders) = builders {
            option("builders", builders);
            option("max-jobs", "0");
            let stock = self
                .nix
                .settings
                .get("build-hook")
                .map(|setting| setting.default.as_str())
                .unwrap_or_default();
            if !stock.is_empty() {
                option("build-hook", stock);
            }
        }
        command.env("NO_COLOR", "1").env("TERM", "dumb");
    }
}

/// The features that a line claims, without those that its machine is known not to have: with these
/// it has to build.
fn able(line: &MachineLine, is: Option<&Is>) -> Vec<String> {
    let has = |feature: &&String| is.is_none_or(|is| is.features.contains(feature));
    line.features().filter(has).cloned().collect()
}

fn expression(nonce: &str, system: &str, features: &[String]) -> String {
    let quoted: Vec<String> = features.iter().map(|feature| nix_string(feature)).collect();
    format!(
        "derivation {{ name = \"hookrun-probe\"; system = {}; builder = \"/bin/sh\"; args = [ \"-c\" \"echo built > $out\" ]; \
         requiredSystemFeatures = [ {} ]; nonce = {}; }}",
        nix_string(system),
        quoted.join(" "),
        nix_string(nonce)
    )
}

/// The store URI with the keys of columns 3 and 8 (`Machine::openStore`, `libstore/machines.cc`).
fn with_keys(line: &MachineLine) -> String {
    let mut uri = line.uri.to_string();
    if !uri.starts_with("ssh") {
        return uri;
    }
    for (name, value) in
        [("ssh-key", &line.ssh_key), ("base64-ssh-public-host-key", &line.host_key)]
    {
        if let Some(value) = value {
            uri.push(if uri.contains('?') { '&' } else { '?' });
            let _ = write!(uri, "{name}={value}");
        }
    }
    uri
}

/// A string of the Nix language.
fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}
