//! Checks whether machines can build, for `hookrun builders check`. It connects to each machine,
//! asks for its system and features, and runs a small build in the same way as real builds (through
//! Nix's own build hook with this one machine), so that the same errors appear.
//!
//! * [`understand`]: parses the messages of Nix. [`findings`]: findings, each with the line to
//!   write and its machine. Both pure.
//! * This file contains the effects. All have a time limit, and they change nothing except for a
//!   small path in both stores, which has no garbage-collector root.

pub mod findings;
pub mod understand;

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use understand::{BuildFailure, build_failure};

use hookrun_nix::bounded;
use hookrun_nix::installed::{Flavour, Installed, Version};
use hookrun_nix::machines::MachineLine;
use hookrun_system::process::describe_end;

/// A feature that no machine has. A build that requires it fails at once, with a message that names
/// the system and features of the machine.
const NO_SUCH_FEATURE: &str = "hookrun-probe";
/// The number of machines that are checked at the same time.
const AT_ONCE: usize = 32;
/// The release that added `nix store ping --json`.
const PING_AS_JSON: Version = Version(2, 15, 0);

/// The results for one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeResult {
    /// Its line.
    #[serde(skip)]
    pub line: MachineLine,
    /// Its store URI.
    pub machine: String,
    /// The connection.
    pub reached: Result<Reached, String>,
    /// The system and features that it reports.
    pub is: Option<MachineFacts>,
    /// A build for each system of its line.
    pub builds: Vec<TestBuild>,
}

/// A store that answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reached {
    /// The time in milliseconds, including that of a Nix process.
    pub ms: u64,
    /// The version of its Nix, if it reports one.
    pub version: Option<String>,
    /// Whether it trusts this user, if it reports that.
    pub trusted: Option<bool>,
}

/// The system and the features of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineFacts {
    /// Its system.
    pub system: String,
    /// Its features.
    pub features: Vec<String>,
}

/// A test build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TestBuild {
    /// The system.
    pub system: String,
    /// The required features.
    pub features: Vec<String>,
    /// The time in milliseconds, or the error.
    pub result: Result<u64, BuildFailure>,
}

/// Checks machines.
#[derive(Debug)]
pub struct Prober<'a> {
    /// The Nix that runs the builds.
    pub nix: &'a Installed,
    /// The longest time for one step with one machine.
    pub limit: Duration,
    /// A text that makes builds unique, together with the index of the machine.
    pub nonce: String,
}

impl Prober<'_> {
    /// Checks `machines`, many at once. The results are in their order.
    pub fn all(&self, machines: &[MachineLine]) -> Vec<ProbeResult> {
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

    fn one(&self, line: &MachineLine, index: usize) -> ProbeResult {
        // Two lines may name one machine. If their builds were the same, one would wait for the
        // other, or fail because of it.
        let nonce = format!("{}-{index}", self.nonce);
        let mut seen = ProbeResult {
            line: line.clone(),
            machine: line.uri.clone(),
            reached: self.reach(line),
            is: None,
            builds: Vec::new(),
        };
        if seen.reached.is_err() {
            return seen;
        }
        let first =
            line.systems.first().cloned().unwrap_or_else(|| self.nix.setting("system").to_owned());
        let mandatory = line.mandatory_features.clone();
        // A build that cannot run makes the machine report its system and features.
        let nothing: Vec<String> =
            mandatory.iter().cloned().chain([NO_SUCH_FEATURE.to_owned()]).collect();
        match self.build(line, &nonce, &first, &nothing) {
            Err(BuildFailure::Lacks(is)) => seen.is = Some(is),
            Err(failure @ BuildFailure::NotPrivileged) => {
                seen.builds.push(TestBuild {
                    system: first,
                    features: mandatory,
                    result: Err(failure),
                });
                return seen;
            }
            // Other errors appear in the real builds.
            Err(_) | Ok(_) => {}
        }
        let systems = if line.systems.is_empty() { vec![first] } else { line.systems.clone() };
        for (index, system) in systems.into_iter().enumerate() {
            let ask = |is: Option<&MachineFacts>| {
                let features = if index == 0 { able(line, is) } else { mandatory.clone() };
                let result = self.build(line, &nonce, &system, &features);
                TestBuild { system: system.clone(), features, result }
            };
            let mut tried = ask(seen.is.as_ref());
            if let (None, Err(BuildFailure::Lacks(is))) = (&seen.is, &tried.result) {
                seen.is = Some(is.clone());
                tried = ask(seen.is.as_ref());
            }
            seen.builds.push(tried);
        }
        seen
    }

    /// Connects to the store.
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
            _ => error.to_string(),
        })?;
        if !said.status.success() {
            return Err(understand::last_error(&said.stderr).unwrap_or_else(|| {
                format!("`{}` {}", program.display(), describe_end(said.status, ""))
            }));
        }
        let ms = u64::try_from(said.took.as_millis()).unwrap_or(u64::MAX);
        let (version, trusted) = understand::hello(&format!("{}\n{}", said.stdout, said.stderr));
        Ok(Reached { ms, version, trusted })
    }

    /// Runs a build that takes no time, on this machine only.
    fn build(
        &self,
        line: &MachineLine,
        nonce: &str,
        system: &str,
        features: &[String],
    ) -> Result<u64, BuildFailure> {
        let mut command = Command::new(self.nix.program.with_file_name("nix-build"));
        let mut claimed = line.clone();
        // The stock hook checks the line, so the line here claims what the build requires.
        claimed.supported_features =
            line.supported_features.iter().chain(features).cloned().collect();
        claimed.systems = std::iter::once(system.to_owned()).collect();
        self.quiet(&mut command, Some(&claimed.line_for_stock_hook()));
        command.args(["--no-out-link", "--expr", &expression(nonce, system, features)]);
        let said = bounded::run(&mut command, self.limit).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => BuildFailure::TooLong,
            _ => BuildFailure::Other(error.to_string()),
        })?;
        if said.status.success() {
            Ok(u64::try_from(said.took.as_millis()).unwrap_or(u64::MAX))
        } else {
            let features =
                features.iter().filter(|feature| *feature != NO_SUCH_FEATURE).cloned().collect();
            Err(build_failure(
                said.status,
                &said.stderr,
                &MachineFacts { system: system.to_owned(), features },
            ))
        }
    }

    /// Adds arguments that switch off hooks, substitutes and colours, and make `builders` the only
    /// place to build. They are not in the environment, because a machine that is reached without
    /// ssh (`ssh://localhost`) would inherit it.
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

/// Returns the features of a line without those that its machine is known to lack. It has to build
/// with these.
fn able(line: &MachineLine, is: Option<&MachineFacts>) -> Vec<String> {
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

/// Returns the store URI with the keys of columns 3 and 8 (`Machine::openStore`,
/// `libstore/machines.cc`).
fn with_keys(line: &MachineLine) -> String {
    let mut uri = line.uri.clone();
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

/// Returns a string literal of the Nix language.
fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}
