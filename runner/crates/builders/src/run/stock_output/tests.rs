use std::os::unix::process::ExitStatusExt as _;

use proptest::prelude::*;

use super::*;

/// The hook's process number.
const PROCESS: u32 = 7034;

/// As Nix 2.8 says it.
fn error(text: &str) -> String {
    let json = serde_json::json!({
        "action": "msg", "level": 0, "msg": format!("\u{1b}[31;1merror:\u{1b}[0m {text}"), "raw_msg": text, "line": null,
    });
    format!("@nix {json}\n")
}

fn ending(lines: &[String], code: Option<i32>) -> Ending {
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
fn builds_that_fail_and_machines_that_are_lost() {
    assert_eq!(ending(&[], Some(0)), Ending::Built);
    assert_eq!(
        ending(&[error(FAILED)], Some(1)),
        Ending::Failed("builder for '/nix/store/x-a.drv' failed with exit code 3".to_owned())
    );
    for lost in [
        "unexpected end-of-file",
        "writing to file: Broken pipe",
        "cannot open connection to remote store 'ssh-ng://m': error: unexpected end-of-file",
        "serialised integer 7310034283826791226 is too large for type 'j'",
        "'nix-store --serve' protocol mismatch from 'm', got 'hello'",
        "you are not privileged to build input-addressed derivations",
    ] {
        assert_eq!(ending(&[error(lost)], Some(1)), Ending::Lost(lost.to_owned()), "{lost}");
    }
    let unfit = "build of '/nix/store/x-a.drv' on 'ssh://m' failed: a 'riscv64-linux' with features {} is required to build '/nix/store/x-a.drv', but I am a 'x86_64-linux' with features {}";
    assert!(matches!(ending(&[error(unfit)], Some(1)), Ending::Lost(_)));
    // As it comes: in lines.
    for reason in [
        "required system or feature not available\n       Required system: 'riscv64-linux' with features {}",
        "missing system features\n       Required features: {quantum}\n       Available features: {benchmark, kvm}",
        "platform mismatch\n       Required system: 'riscv64-linux'\n       Current system: 'x86_64-linux'",
        "local builds are disabled (max-jobs = 0)",
    ] {
        let unfit = format!(
            "build of '/nix/store/x-a.drv' on 'ssh://m' failed: Cannot build '/nix/store/x-a.drv'.\n       Reason: {reason}"
        );
        assert!(matches!(ending(&[error(&unfit)], Some(1)), Ending::Lost(_)), "{reason}");
    }
}

#[test]
fn what_nobody_understands_is_a_failure() {
    assert_eq!(
        ending(&[error("path '/x' is not valid")], Some(1)),
        Ending::Failed("path '/x' is not valid".to_owned())
    );
    assert!(matches!(ending(&[], Some(1)), Ending::Failed(_)));
    // Both: the build is known to have failed.
    assert!(matches!(
        ending(&[error("unexpected end-of-file"), error(FAILED)], Some(1)),
        Ending::Failed(_)
    ));
    // The words of a remote daemon, or of the build, are no exceptions.
    let said = r#"@nix {"action":"msg","level":0,"msg":"unexpected end-of-file"}"#.to_owned();
    assert!(matches!(ending(&[said], Some(1)), Ending::Failed(_)));
    let injected =
        r#"@nix {"action":"msg","level":0,"msg":"error: unexpected end-of-file"}"#.to_owned();
    assert!(matches!(ending(&[injected, error(FAILED)], Some(1)), Ending::Failed(_)));
    let log =
        r#"@nix {"action":"result","fields":["error: unexpected end-of-file"],"id":1,"type":101}"#
            .to_owned();
    assert!(matches!(ending(&[log], Some(1)), Ending::Failed(_)));
}

#[test]
fn errors_are_held_and_activities_closed() {
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
    fn any_bytes_may_come(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20), code in 0i32..3) {
        let mut listener = OutputClassifier::default();
        for line in lines {
            let mut json = b"@nix ".to_vec();
            json.extend(&line);
            listener.line(&line, Instant::now());
            listener.line(&json, Instant::now());
        }
        prop_assert_eq!(listener.ending(status(Some(code))) == Ending::Built, code == 0);
        let blames = matches!(listener.ending(status(Some(code))), Ending::Lost(_) | Ending::Here(_));
        prop_assert!(!blames, "without an exception nobody is to blame");
    }
}

#[test]
fn a_full_disk_of_the_machine_is_not_the_builds_failure() {
    let end = |why: &str| {
        let words = format!("build of '/nix/store/x.drv' on 'ssh://m' failed: {why}");
        matches!(ending(&[error(&words)], Some(1)), Ending::Lost(_))
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

/// What builds print at their end, as Nix quotes it, up to 2.28 and from 2.29 on.
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
fn words_of_a_build_say_nothing_about_its_machine() {
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
                assert!(matches!(ending(&[error(&text)], Some(1)), Ending::Failed(_)), "{text}");
            }
        }
        let printed =
            serde_json::json!({"action": "msg", "level": 0, "msg": format!("error: {line}")});
        let printed = format!("@nix {printed}\n");
        assert!(matches!(ending(&[printed, error(FAILED)], Some(1)), Ending::Failed(_)), "{line}");
    }
    // A name that a build has chosen, in what the machine's Nix says.
    let named = "build of '/nix/store/x-a.drv' on 'ssh://m' failed: file '/nix/store/x-a/writing: No space left on device' has an unsupported type";
    assert!(matches!(ending(&[error(named)], Some(1)), Ending::Failed(_)));
}

/// The beginning of an activity.
fn begins(id: u64, kind: u64, text: &str) -> String {
    let json =
        serde_json::json!({"action": "start", "id": id, "level": 4, "type": kind, "text": text});
    format!("@nix {json}\n")
}

#[test]
fn what_fails_while_outputs_are_stored_is_this_machines_trouble() {
    let own = u64::from(PROCESS) << 32 | 5;
    let copies = || begins(own, 0, "copying outputs from 'ssh://m'");
    for (why, fix) in [
        ("writing to file: No space left on device", "make room"),
        ("writing to file '/nix/store/a': Disk quota exceeded", "make room"),
        (
            "executing SQLite statement 'x': database or disk is full (in '/nix/var/nix/db/db.sqlite')",
            "make room",
        ),
        ("SQLite database '/nix/var/nix/db/db.sqlite' is busy", ""),
        ("creating directory '/nix/store/a': Permission denied", "writable"),
        ("changing modes of '/nix/store/a': Read-only file system", "writable"),
    ] {
        let Ending::Here(said) = ending(&[copies(), error(why)], Some(1)) else {
            panic!("{why}: not this machine")
        };
        assert!(said.starts_with("cannot store what was built: ") && said.contains(fix), "{said}");
    }
    for lost in ["unexpected end-of-file", "writing to file: Broken pipe"] {
        assert_eq!(ending(&[copies(), error(lost)], Some(1)), Ending::Lost(lost.to_owned()));
    }
    // An output that the machine does not have is a build that failed there.
    let absent = error("path '/nix/store/x-a' is not valid");
    assert!(matches!(ending(&[copies(), absent], Some(1)), Ending::Failed(_)));
    // A build may begin activities of the type of downloads, and a machine its own ones.
    for other in [
        begins(own, 101, "copying outputs from 'ssh://m'"),
        begins(9 << 32, 0, "copying outputs from 'ssh://third'"),
    ] {
        let full = error("writing to file: No space left on device");
        assert!(matches!(ending(&[other, full], Some(1)), Ending::Lost(_)));
    }
    let lock = "opening lock file '/nix/var/nix/current-load/ssh:__m.upload-lock': No space left on device";
    assert!(matches!(ending(&[error(lock)], Some(1)), Ending::Here(_)));
    let Ending::Here(killed) = ending(&[], None) else { panic!("it was killed on this machine") };
    assert_eq!(killed, "has lost Nix's own build hook, which ended with signal: 9 (SIGKILL)");
    let Ending::Failed(silent) = ending(&[], Some(3)) else { panic!("it gave no reason") };
    assert_eq!(silent, "Nix's own build hook ended with exit status: 3 and without a message");
}
