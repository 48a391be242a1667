use std::os::unix::process::ExitStatusExt as _;

use proptest::prelude::*;

use super::*;

/// The process id of the hook.
const PROCESS: u32 = 7034;

/// Returns an error as Nix 2.8 writes it.
fn error(text: &str) -> String {
    let json = serde_json::json!({
        "action": "msg", "level": 0, "msg": format!("\u{1b}[31;1merror:\u{1b}[0m {text}"), "raw_msg": text, "line": null,
    });
    format!("@nix {json}\n")
}

fn ending(lines: &[String], code: Option<i32>) -> DelegationOutcome {
    let mut listener = OutputClassifier::of(PROCESS, "ssh://m");
    for line in lines {
        listener.line(line.as_bytes(), Instant::now());
    }
    listener.ending(status(code))
}

const SIGKILL: i32 = 9;

/// The status of a process that ended with `code`, or was killed.
fn status(code: Option<i32>) -> ExitStatus {
    ExitStatus::from_raw(code.map_or(SIGKILL, |code| code << 8))
}

const FAILED: &str = "build of '\u{1b}[35;1m/nix/store/x-a.drv\u{1b}[0m' on '\u{1b}[35;1mssh://m\u{1b}[0m' failed: builder for '/nix/store/x-a.drv' failed with exit code 3";

#[test]
fn failed_builds_and_lost_machines_are_distinguished() {
    assert_eq!(ending(&[], Some(0)), DelegationOutcome::Built);
    assert_eq!(
        ending(&[error(FAILED)], Some(1)),
        DelegationOutcome::Failed(
            "builder for '/nix/store/x-a.drv' failed with exit code 3".to_owned()
        )
    );
    for lost in [
        "unexpected end-of-file",
        "writing to file: Broken pipe",
        "cannot open connection to remote store 'ssh-ng://m': error: unexpected end-of-file",
        "serialised integer 7310034283826791226 is too large for type 'j'",
        "'nix-store --serve' protocol mismatch from 'm', got 'hello'",
        "you are not privileged to build input-addressed derivations",
    ] {
        assert_eq!(
            ending(&[error(lost)], Some(1)),
            DelegationOutcome::Lost(lost.to_owned()),
            "{lost}"
        );
    }
    let unfit = "build of '/nix/store/x-a.drv' on 'ssh://m' failed: a 'riscv64-linux' with features {} is required to build '/nix/store/x-a.drv', but I am a 'x86_64-linux' with features {}";
    assert!(matches!(ending(&[error(unfit)], Some(1)), DelegationOutcome::Lost(_)));
    // In several lines, as it arrives.
    for reason in [
        "required system or feature not available\n       Required system: 'riscv64-linux' with features {}",
        "missing system features\n       Required features: {quantum}\n       Available features: {benchmark, kvm}",
        "platform mismatch\n       Required system: 'riscv64-linux'\n       Current system: 'x86_64-linux'",
        "local builds are disabled (max-jobs = 0)",
    ] {
        let unfit = format!(
            "build of '/nix/store/x-a.drv' on 'ssh://m' failed: Cannot build '/nix/store/x-a.drv'.\n       Reason: {reason}"
        );
        assert!(
            matches!(ending(&[error(&unfit)], Some(1)), DelegationOutcome::Lost(_)),
            "{reason}"
        );
    }
}

#[test]
fn an_unknown_error_is_a_failure() {
    assert_eq!(
        ending(&[error("path '/x' is not valid")], Some(1)),
        DelegationOutcome::Failed("path '/x' is not valid".to_owned())
    );
    assert!(matches!(ending(&[], Some(1)), DelegationOutcome::Failed(_)));
    // The build is known to have failed.
    assert!(matches!(
        ending(&[error("unexpected end-of-file"), error(FAILED)], Some(1)),
        DelegationOutcome::Failed(_)
    ));
    // Messages of a remote daemon or of the build are not exceptions.
    let said = r#"@nix {"action":"msg","level":0,"msg":"unexpected end-of-file"}"#.to_owned();
    assert!(matches!(ending(&[said], Some(1)), DelegationOutcome::Failed(_)));
    let injected =
        r#"@nix {"action":"msg","level":0,"msg":"error: unexpected end-of-file"}"#.to_owned();
    assert!(matches!(ending(&[injected, error(FAILED)], Some(1)), DelegationOutcome::Failed(_)));
    let log =
        r#"@nix {"action":"result","fields":["error: unexpected end-of-file"],"id":1,"type":101}"#
            .to_owned();
    assert!(matches!(ending(&[log], Some(1)), DelegationOutcome::Failed(_)));
}

#[test]
fn errors_are_held_back_and_activities_are_closed() {
    let mut listener = OutputClassifier::of(PROCESS, "ssh://m");
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(
        listener
            .line(br#"@nix {"action":"start","id":7,"level":4,"text":"copying dependencies to 'ssh://m'","type":0}"#, now)
    );
    assert!(listener.line(
        br#"@nix {"action":"start","id":8,"level":3,"text":"copying path","type":100}"#,
        now
    ));
    assert!(listener.line(
        br#"@nix {"action":"result","fields":[4194304,4194304,0,0],"id":8,"type":105}"#,
        now
    ));
    assert!(listener.line(br#"@nix {"action":"stop","id":7}"#, at(2)));
    assert!(
        listener
            .line(br#"@nix {"action":"start","id":9,"level":4,"text":"copying outputs from 'ssh://m'","type":0}"#, at(12))
    );
    assert!(listener.line(b"anything else", now));
    assert!(!listener.line(error("unexpected end-of-file").as_bytes(), now));
    assert_eq!(listener.held(), [error("unexpected end-of-file").into_bytes()]);
    assert_eq!(listener.timing().building(), Some(Duration::from_secs(10)));
    assert_eq!(listener.timing().bytes_per_second(), Some(2_097_152.0));
    let closed = String::from_utf8(listener.close_activities()).unwrap();
    assert_eq!(
        closed,
        "@nix {\"action\":\"stop\",\"id\":9}\n@nix {\"action\":\"stop\",\"id\":8}\n"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_classified(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20), code in 0i32..3) {
        let mut listener = OutputClassifier::default();
        for line in lines {
            let mut json = b"@nix ".to_vec();
            json.extend(&line);
            listener.line(&line, Instant::now());
            listener.line(&json, Instant::now());
        }
        prop_assert_eq!(listener.ending(status(Some(code))) == DelegationOutcome::Built, code == 0);
        let blames = matches!(listener.ending(status(Some(code))), DelegationOutcome::Lost(_) | DelegationOutcome::Here(_));
        prop_assert!(!blames, "without an exception the cause is not known");
    }
}

#[test]
fn a_full_disk_of_the_machine_is_not_a_failure_of_the_build() {
    let end = |why: &str| {
        let words = format!("build of '/nix/store/x.drv' on 'ssh://m' failed: {why}");
        matches!(ending(&[error(&words)], Some(1)), DelegationOutcome::Lost(_))
    };
    assert!(end("error: writing to file '/nix/store/a/b': No space left on device"));
    assert!(end(
        "error: committing transaction: database or disk is full (in '/nix/var/nix/db/db.sqlite')"
    ));
    assert!(!end(
        "builder for '/nix/store/x.drv' failed with exit code 1; last 1 log lines: > cp: No space left on device"
    ));
    assert!(!end(
        "Cannot build '/nix/store/x.drv'. Reason: builder failed with exit code 1. > No space left on device"
    ));
}

/// Returns the end of a build's log as Nix quotes it, up to 2.28 and since 2.29.
fn quoted(log: &str) -> [String; 2] {
    let drv = "/nix/store/x-a.drv";
    [
        format!(
            "builder for '{drv}' failed with exit code 1;\nlast 2 log lines:\n> begun\n> {log}\nFor full logs, run 'nix log {drv}'."
        ),
        format!(
            "Cannot build '{drv}'.\nReason: builder failed with exit code 1.\nOutput paths:\n  /nix/store/y-a\nLast 2 log lines:\n> begun\n> {log}"
        ),
    ]
}

#[test]
fn the_log_of_a_build_does_not_count() {
    let lines = [
        "configure: error: libfoo 2.0 is required to build this package",
        "you are not privileged to build derivations",
        "a 'riscv64-linux' with features {} is required to build 'x', but I am a 'y'",
        "error: unexpected end-of-file",
        "writing to file: No space left on device",
        "Reason: local builds are disabled",
        "ssh: connect: Connection refused",
    ];
    for line in lines {
        for quoted in quoted(line) {
            // As the answer of the machine, and as an exception that it sends.
            for text in
                [format!("build of '/nix/store/x-a.drv' on 'ssh://m' failed: {quoted}"), quoted]
            {
                assert!(
                    matches!(ending(&[error(&text)], Some(1)), DelegationOutcome::Failed(_)),
                    "{text}"
                );
            }
        }
        let printed =
            serde_json::json!({"action": "msg", "level": 0, "msg": format!("error: {line}")});
        let printed = format!("@nix {printed}\n");
        assert!(
            matches!(ending(&[printed, error(FAILED)], Some(1)), DelegationOutcome::Failed(_)),
            "{line}"
        );
    }
    // A name that the build has chosen, in a message of the machine's Nix.
    let named = "build of '/nix/store/x-a.drv' on 'ssh://m' failed: file '/nix/store/x-a/writing: No space left on device' has an unsupported type";
    assert!(matches!(ending(&[error(named)], Some(1)), DelegationOutcome::Failed(_)));
}

/// Returns the beginning of an activity.
fn begins(id: u64, kind: u64, text: &str) -> String {
    let json =
        serde_json::json!({"action": "start", "id": id, "level": 4, "type": kind, "text": text});
    format!("@nix {json}\n")
}

#[test]
fn failures_to_store_outputs_are_problems_of_this_machine() {
    let own = u64::from(PROCESS) << 32 | 5;
    let copies = || begins(own, 0, "copying outputs from 'ssh://m'");
    for (why, fix) in [
        ("writing to file: No space left on device", "free space"),
        ("writing to file '/nix/store/a': Disk quota exceeded", "free space"),
        (
            "executing SQLite statement 'x': database or disk is full (in '/nix/var/nix/db/db.sqlite')",
            "free space",
        ),
        ("SQLite database '/nix/var/nix/db/db.sqlite' is busy", ""),
        ("creating directory '/nix/store/a': Permission denied", "writable"),
        ("changing modes of '/nix/store/a': Read-only file system", "writable"),
    ] {
        let DelegationOutcome::Here(said) = ending(&[copies(), error(why)], Some(1)) else {
            panic!("{why}: not this machine")
        };
        assert!(said.starts_with("cannot store the outputs: ") && said.contains(fix), "{said}");
    }
    for lost in ["unexpected end-of-file", "writing to file: Broken pipe"] {
        assert_eq!(
            ending(&[copies(), error(lost)], Some(1)),
            DelegationOutcome::Lost(lost.to_owned())
        );
    }
    // If the machine does not have an output, the build failed there.
    let absent = error("path '/nix/store/x-a' is not valid");
    assert!(matches!(ending(&[copies(), absent], Some(1)), DelegationOutcome::Failed(_)));
    // A build may begin activities of the type of downloads, and a machine may begin its own.
    for other in [
        begins(own, 101, "copying outputs from 'ssh://m'"),
        begins(9 << 32, 0, "copying outputs from 'ssh://third'"),
    ] {
        let full = error("writing to file: No space left on device");
        assert!(matches!(ending(&[other, full], Some(1)), DelegationOutcome::Lost(_)));
    }
    let lock = "opening lock file '/nix/var/nix/current-load/ssh:__m.upload-lock': No space left on device";
    assert!(matches!(ending(&[error(lock)], Some(1)), DelegationOutcome::Here(_)));
    let DelegationOutcome::Here(killed) = ending(&[], None) else {
        panic!("it was killed on this machine")
    };
    assert_eq!(
        killed,
        "cannot continue, because Nix's own build hook ended with signal: 9 (SIGKILL)"
    );
    let DelegationOutcome::Failed(silent) = ending(&[], Some(3)) else {
        panic!("it gave no reason")
    };
    assert_eq!(silent, "Nix's own build hook ended with exit status: 3 and without a message");
}
