use proptest::prelude::*;

use super::*;

/// As Nix 2.8 says it.
fn error(text: &str) -> String {
    let json = serde_json::json!({
        "action": "msg", "level": 0, "msg": format!("\u{1b}[31;1merror:\u{1b}[0m {text}"), "raw_msg": text, "line": null,
    });
    format!("@nix {json}\n")
}

fn ending(lines: &[String], code: Option<i32>) -> Ending {
    let mut listener = Listener::default();
    for line in lines {
        listener.hear(line.as_bytes(), Instant::now());
    }
    listener.ending(code)
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
    assert_eq!(ending(&[], None), Ending::Lost("Nix's own build hook was killed".to_owned()));
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
    let log =
        r#"@nix {"action":"result","fields":["error: unexpected end-of-file"],"id":1,"type":101}"#
            .to_owned();
    assert!(matches!(ending(&[log], Some(1)), Ending::Failed(_)));
}

#[test]
fn errors_are_held_and_activities_closed() {
    let mut listener = Listener::default();
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(
        listener
            .hear(br#"@nix {"action":"start","id":7,"level":4,"text":"copying dependencies to 'ssh://m'","type":0}"#, now)
    );
    assert!(listener.hear(
        br#"@nix {"action":"start","id":8,"level":3,"text":"copying path","type":100}"#,
        now
    ));
    assert!(listener.hear(
        br#"@nix {"action":"result","fields":[4194304,4194304,0,0],"id":8,"type":105}"#,
        now
    ));
    assert!(listener.hear(br#"@nix {"action":"stop","id":7}"#, at(2)));
    assert!(
        listener
            .hear(br#"@nix {"action":"start","id":9,"level":4,"text":"copying outputs from 'ssh://m'","type":0}"#, at(12))
    );
    assert!(listener.hear(b"anything else", now));
    assert!(!listener.hear(error("unexpected end-of-file").as_bytes(), now));
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
        let mut listener = Listener::default();
        for line in lines {
            let mut json = b"@nix ".to_vec();
            json.extend(&line);
            listener.hear(&line, Instant::now());
            listener.hear(&json, Instant::now());
        }
        prop_assert_eq!(listener.ending(Some(code)) == Ending::Built, code == 0);
        prop_assert!(!matches!(listener.ending(Some(code)), Ending::Lost(_)), "without an exception nothing is lost");
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
