use super::*;

/// A program that behaves like a mail server's `sendmail`, with the given exit code.
pub(super) fn sendmail_scene(exit: i32) -> (Scene, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (program, args, body) = (
        directory.path().join("sendmail"),
        directory.path().join("args"),
        directory.path().join("body"),
    );
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >> {}\ncat > {}\necho 'no such\nuser' >&2\nexit {exit}\n",
        args.display(),
        body.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = CONFIGURATION.replace(
        "[mail.default]",
        &format!("[mail.default]\ntransport = \"sendmail\"\nprogram = \"{}\"", program.display()),
    );
    (scene(&text, false), directory)
}

#[test]
fn sendmail_gets_the_envelope_as_arguments() {
    let (scene, directory) = sendmail_scene(0);
    scene.send(&["root@localhost", "Ann <ann@example.org>"], &message()).unwrap();
    let args = std::fs::read_to_string(directory.path().join("args")).unwrap();
    assert_eq!(
        args,
        "-i\n-f\nhookrun@example.org\n--\nroot@localhost\n\
         -i\n-f\nhookrun@example.org\n--\nann@example.org\n",
        "one start for each recipient"
    );
    let body = std::fs::read_to_string(directory.path().join("body")).unwrap();
    assert!(body.contains("Auto-Submitted: auto-generated\n") && !body.contains('\r'), "{body}");
}

#[test]
fn exit_codes_of_sendmail_become_kinds_of_errors() {
    for (exit, kind) in
        [(75, ErrorKind::Transient), (67, ErrorKind::Permanent), (78, ErrorKind::Refused)]
    {
        let (scene, directory) = sendmail_scene(exit);
        let error = scene.send(&["root@localhost"], &message()).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        let shown = error.message.replace(&directory.path().display().to_string(), "DIR");
        assert_eq!(
            shown,
            format!(
                "mail transport `default`: DIR/sendmail refused the message (exit status: {exit}: no such user); check its \
                 configuration, and `from` and `to` under [mail.default]"
            )
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let text = CONFIGURATION.replace(
        "[mail.default]",
        &format!("[mail.default]\ntransport = \"sendmail\"\nprogram = \"{}\"", missing.display()),
    );
    let error = scene(&text, false).send(&["root@localhost"], &message()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("write the right `program` under [mail.default]"), "{error}");
}

#[test]
fn a_retry_after_all_recipients_were_refused_asks_all_of_them_again() {
    let (scene, directory) = sendmail_scene(67);
    for attempt in 1..=2 {
        let to = ["root@localhost", "ann@example.org"];
        let error = scene.send(&to, &message()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Permanent);
        assert!(error.message.contains("no recipient was accepted: root@localhost ("), "{error}");
        let args = std::fs::read_to_string(directory.path().join("args")).unwrap();
        assert_eq!(args.matches("--\n").count(), 2 * attempt);
    }
}

#[test]
fn nothing_is_sent_while_its_recipients_cannot_be_recorded() {
    let (scene, directory) = sendmail_scene(0);
    std::fs::write(scene.state.path().join("mail-progress"), "in the way").unwrap();
    let error = scene.send(&["root@localhost"], &message()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.message.contains("mail-progress cannot be written"), "{}", error.message);
    assert!(!directory.path().join("args").exists(), "the program was started");
}
