//! Parses messages of Nix about a machine. Pure.

use std::process::ExitStatus;

use hookrun_system::process::describe_end;
use serde::Serialize;

use super::MachineFacts;
use crate::run::stock_output::without_colours;

/// The reason why a test build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildFailure {
    /// The machine does not trust the user of the connection.
    NotPrivileged,
    /// The machine lacks the system or the features. Contains those that it has.
    Lacks(MachineFacts),
    /// The build did not end in time.
    TooLong,
    /// Another error, as Nix reports it.
    Other(String),
}

/// Parses the messages of a failed build that required this system and these features.
pub fn build_failure(status: ExitStatus, messages: &str, asked: &MachineFacts) -> BuildFailure {
    let text = errors(messages);
    // `libstore/daemon.cc`, `wopBuildDerivation`: a user who is not trusted.
    if text.contains("you are not privileged to build") {
        return BuildFailure::NotPrivileged;
    }
    // `LocalDerivationGoal::startBuilder`: "a 'X' with features {..} is required to build '..', but
    // I am a 'Y' with features {..}"; from 2.29 on "Required system: 'X' with features {..}" and
    // "Current system: 'Y' with features {..}". The last of the two is the machine.
    if let Some(is) = text
        .match_indices("' with features {")
        .filter_map(|(at, words)| system_at(&text, at, words.len()))
        .last()
        && (text.contains("is required to build") || text.contains("Current system:"))
    {
        return BuildFailure::Lacks(is);
    }
    // From 2.34 on: "Reason: platform mismatch" with "Current system: 'Y'", "Reason: missing system
    // features" with "Available features: {..}". Values that are not reported are as required.
    let (current, available) =
        (after(&text, "Current system: '", '\''), after(&text, "Available features: {", '}'));
    if current.is_some() || available.is_some() {
        let features = available.map_or_else(|| asked.features.clone(), names);
        return BuildFailure::Lacks(MachineFacts {
            system: current.unwrap_or(&asked.system).to_owned(),
            features,
        });
    }
    let silent = || format!("`nix-build` {}", describe_end(status, ""));
    BuildFailure::Other(last_error(messages).unwrap_or_else(silent))
}

/// Returns Nix's own errors, without output of ssh or a program before them and without lines of a
/// build log.
fn errors(messages: &str) -> String {
    let text = without_colours(messages);
    let is_error =
        |line: &&str| line.starts_with("error:") || line.starts_with("cannot build on '");
    let lines = text.lines().skip_while(|line| !is_error(line));
    lines
        .filter(|line| !line.trim_start().starts_with("> "))
        .fold(String::new(), |all, line| all + line + "\n")
}

fn system_at(text: &str, at: usize, length: usize) -> Option<MachineFacts> {
    let system = text.get(..at)?.rsplit_once('\'')?.1;
    let features = text.get(at + length..)?.split_once('}')?.0;
    Some(MachineFacts { system: system.to_owned(), features: names(features) })
}

/// Parses a set of features that Nix prints, without its braces.
fn names(set: &str) -> Vec<String> {
    set.split(',')
        .map(str::trim)
        .filter(|feature| !feature.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// Returns the text between the last `begin` and the next `end`.
fn after<'t>(text: &'t str, begin: &str, end: char) -> Option<&'t str> {
    text.rsplit_once(begin)?.1.split_once(end).map(|(between, _)| between)
}

/// Words that mark a line of ssh or Nix as an error, in lower case.
const WORDS_OF_FAILURE: [&str; 8] =
    ["error", "cannot", "could not", "failed", "denied", "refused", "timed out", "not found"];

/// Returns the last error among messages, on one line, without errors that only repeat that
/// something has failed.
pub fn last_error(messages: &str) -> Option<String> {
    let text = without_colours(messages);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let telling = |line: &&&str| {
        let line = line.to_ascii_lowercase();
        let empty = line.starts_with("error: unable to start any build")
            || line.contains("dependencies couldn't be built")
            || (line.starts_with("error: build of") && line.ends_with("failed"));
        !empty && WORDS_OF_FAILURE.iter().any(|word| line.contains(word))
    };
    // `LegacySSHStore::openConnection`, `SSHMaster::startCommand`: an earlier line, of ssh or of
    // the Nix there, gives the reason.
    let outcome = |line: &str| {
        line.contains("error: cannot connect to '")
            || line.contains("failed to start SSH connection to")
    };
    let found =
        |wanted: &dyn Fn(&&&str) -> bool| lines.iter().rev().find(|line| wanted(line)).copied();
    let line = found(&|line| telling(line) && !outcome(line))
        .or_else(|| found(&telling))
        .or_else(|| lines.last().copied())?;
    Some(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}

/// Parses version and trust in the output of `nix store ping`: lines in 2.8 (`Version: 2.8.0`,
/// later `Trusted: 1`), or JSON.
pub fn hello(said: &str) -> (Option<String>, Option<bool>) {
    for line in said.lines() {
        if let Ok(value) = serde_json::from_str::<serde_json::Value>(line)
            && value.is_object()
        {
            let version =
                value.get("version").and_then(serde_json::Value::as_str).map(ToOwned::to_owned);
            let trusted = value.get("trusted").and_then(|trusted| {
                trusted.as_bool().or_else(|| trusted.as_u64().map(|one| one == 1))
            });
            return (version, trusted);
        }
    }
    let after = |name: &str| {
        said.lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .map(|rest| rest.trim().to_owned())
            .filter(|rest| !rest.is_empty())
    };
    (after("Version:"), after("Trusted:").map(|word| word == "1" || word == "true"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use proptest::prelude::*;

    use super::*;

    fn is(system: &str, features: &[&str]) -> BuildFailure {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        BuildFailure::Lacks(MachineFacts { system: system.to_owned(), features })
    }

    /// Parses the messages of a machine that was asked for features that it lacks.
    fn build_failure(messages: &str) -> BuildFailure {
        super::build_failure(
            ExitStatus::from_raw(1 << 8),
            messages,
            &MachineFacts { system: "asked-linux".to_owned(), features: vec!["asked".to_owned()] },
        )
    }

    #[test]
    fn refusals_of_2_34_are_understood() {
        let failed = "building '/nix/store/x.drv' on 'ssh://m'...\nerror: build of '/nix/store/x.drv' on 'ssh://m' failed: Cannot build \
                      '/nix/store/x.drv'.\n       Reason: ";
        let local = "error: Cannot build '/nix/store/x.drv'.\n       Reason: builder failed with exit code 1.\n       Output paths:\n         \
                     /nix/store/y\n";
        let features = "missing system features\n       Required features: {benchmark, quantum}\n       Available features: {benchmark, kvm}\n";
        assert_eq!(
            build_failure(&format!("{failed}{features}{local}")),
            is("asked-linux", &["benchmark", "kvm"])
        );
        let none = "missing system features\n       Required features: {quantum}\n       Available features: {}\n";
        assert_eq!(build_failure(&format!("{failed}{none}{local}")), is("asked-linux", &[]));
        let system = "platform mismatch\n       Required system: 'aarch64-linux'\n       Current system: 'x86_64-linux'\n";
        assert_eq!(
            build_failure(&format!("{failed}{system}{local}")),
            is("x86_64-linux", &["asked"])
        );
    }

    #[test]
    fn refusals_of_several_releases_are_understood() {
        let old = "building '/nix/store/x-hookrun-probe.drv' on 'ssh://m'...\n\u{1b}[31;1merror:\u{1b}[0m a '\u{1b}[35;1mx86_64-linux\u{1b}[0m' with \
                   features {hookrun-probe} is required to build '\u{1b}[35;1m/nix/store/x-hookrun-probe.drv\u{1b}[0m', but I am a \
                   'x86_64-linux' with features {benchmark, big-parallel}\n";
        assert_eq!(build_failure(old), is("x86_64-linux", &["benchmark", "big-parallel"]));
        let new = "error: Cannot build '/nix/store/x.drv'.\n       Reason: required system or feature not available\n       Required system: \
                   'aarch64-linux' with features {}\n       Current system: 'x86_64-linux' with features {kvm}\n";
        assert_eq!(build_failure(new), is("x86_64-linux", &["kvm"]));
        let untrusted = "error: you are not privileged to build derivations\nerror: build of '/nix/store/x.drv' failed\n";
        assert_eq!(build_failure(untrusted), BuildFailure::NotPrivileged);
        let refused = "cannot build on 'ssh://m': error: failed to start SSH connection to 'm'\nerror: unable to start any build; either \
                       increase '--max-jobs' or enable remote builds.\n";
        assert_eq!(
            build_failure(refused),
            BuildFailure::Other(
                "cannot build on 'ssh://m': error: failed to start SSH connection to 'm'"
                    .to_owned()
            )
        );
    }

    #[test]
    fn the_output_of_builds_and_ssh_is_ignored() {
        let failed = "error: build of '/nix/store/x.drv' on 'ssh://m' failed: builder for '/nix/store/x.drv' failed with exit code 1;\n";
        for words in
            ["you are not privileged to build derivations", "Current system: 'riscv64-linux'"]
        {
            let said = format!("{words}\n{failed}       last 1 log lines:\n       > {words}\n");
            assert!(matches!(build_failure(&said), BuildFailure::Other(_)), "{said}");
        }
    }

    #[test]
    fn the_reason_of_a_failed_connection_is_found() {
        let said = "Store URL: ssh://m\nssh: connect to host m port 22: Connection refused\nerror: cannot connect to 'm'\n";
        assert_eq!(
            last_error(said).as_deref(),
            Some("ssh: connect to host m port 22: Connection refused")
        );
        let said = "error: '/nix/var/nix/db/schema' is corrupt\nerror: cannot connect to 'm'\n";
        assert_eq!(last_error(said).as_deref(), Some("'/nix/var/nix/db/schema' is corrupt"));
        assert_eq!(
            last_error("error: cannot connect to 'm'\n").as_deref(),
            Some("cannot connect to 'm'")
        );
    }

    #[test]
    fn version_and_trust_are_read_from_lines_and_json() {
        assert_eq!(
            hello("Store URL: ssh-ng://m\nVersion: 2.8.0\n"),
            (Some("2.8.0".to_owned()), None)
        );
        assert_eq!(
            hello(r#"{"trusted":1,"url":"ssh-ng://m","version":"2.26.3"}"#),
            (Some("2.26.3".to_owned()), Some(true))
        );
        assert_eq!(
            hello("Store URL: ssh-ng://m\nVersion: 2.20.1\nTrusted: 0\n"),
            (Some("2.20.1".to_owned()), Some(false))
        );
        assert_eq!(hello(""), (None, None));
    }

    proptest! {
        #[test]
        fn any_messages_are_parsed(text: String) {
            let _ = (build_failure(&text), hello(&text));
        }
    }
}
