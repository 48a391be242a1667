use super::*;
use crate::run::stock_output::plain;

fn machine() -> MachineLine {
    hookrun_nix::machines::parse("ssh://m x86_64-linux", "x86_64-linux").machines.remove(0)
}

/// Offers a build to a shell script instead of the stock hook. Returns the answer, and the relayed
/// lines.
fn offer(script: &str) -> (Offer, String) {
    offer_within(script, Duration::from_secs(20))
}

fn offer_within(script: &str, deadline: Duration) -> (Offer, String) {
    let program = StockProgram::other("/bin/sh", &["-c", script]);
    let mut delegate = InstalledHook { program, deadline, variables: Vec::new(), sharing: None };
    let mut relayed = Vec::new();
    let settings = Settings::of(&[("builders", "@/etc/nix/machines"), ("cores", "1")]);
    let request = Request::of("a", "x86_64-linux", &["kvm"], true);
    let machine = machine();
    let target = Target { machine: &machine, slot: None };
    let offer =
        delegate.offer(&settings, target, &request, &mut |line| relayed.extend_from_slice(line));
    (offer, String::from_utf8(relayed).unwrap())
}

fn failure(script: &str) -> String {
    match offer(script).0 {
        Offer::Failed(why) => why,
        Offer::Here(why) => format!("here: {why}"),
        Offer::Full => "full".to_owned(),
        Offer::Accepted(_) => "accepted".to_owned(),
    }
}

const REFUSED: &str = r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m cannot build on '\u001b[35;1mssh://m\u001b[0m': error: failed to start SSH connection to 'm': ssh:\n connection refused"}"#;

#[test]
fn answers_of_the_stock_hook_are_understood() {
    assert_eq!(failure("echo '# postpone' >&2"), "full");
    assert_eq!(failure("echo '# decline' >&2"), "full");
    assert_eq!(
        failure(&format!(
            "echo \"$0\" >&2 <<'X'\nX\ncat >&2 <<'X'\n{REFUSED}\nX\necho '# decline' >&2"
        ))
        .replace("sh\n", ""),
        "failed to start SSH connection to 'm': ssh: connection refused"
    );
    assert_eq!(
        failure("exit 3"),
        "here: Nix's own build hook ended with exit status: 3 without an answer"
    );
    assert_eq!(
        failure("printf '# acc' >&2"),
        "here: Nix's own build hook ended with exit status: 0 without an answer"
    );
    assert_eq!(
        failure("printf '# accept\\nssh://m' >&2"),
        "here: Nix's own build hook ended with exit status: 0 within its answer"
    );
    assert_eq!(
        failure("echo '# decline-permanently' >&2"),
        "here: Nix's own build hook answered `decline-permanently`"
    );
    assert_eq!(
        failure("kill -9 $$"),
        "here: Nix's own build hook ended with signal: 9 (SIGKILL) without an answer"
    );
}

#[test]
fn the_output_of_ssh_is_reported_with_an_unusable_machine() {
    // With ssh-ng:// it is separate from the messages, with ssh:// it is part of them.
    let script = format!(
        "echo 'Warning: x' >&2; echo 'Host key verification failed.' >&2; cat >&2 <<'X'\n{REFUSED}\nX\necho '# decline' >&2"
    );
    assert_eq!(
        failure(&script),
        "failed to start SSH connection to 'm': ssh: connection refused: Warning: x; Host key verification failed."
    );
}

#[test]
fn a_hook_that_fails_before_it_names_the_machine_is_not_a_failure_of_it() {
    let full = r#"@nix {"action":"msg","level":0,"msg":"error: x","raw_msg":"opening lock file '/nix/var/nix/db/big-lock': No space left on device"}"#;
    assert_eq!(
        failure(&format!("cat >&2 <<'X'\n{full}\nX\nexit 1")),
        "here: opening lock file '/nix/var/nix/db/big-lock': No space left on device"
    );
    // The script does not start ssh within its time limit.
    let (offer, _) = offer_within("exec sleep 1000", Duration::from_millis(500));
    assert!(matches!(&offer, Offer::Here(why) if why.contains("has not begun to connect")));
}

#[test]
fn the_standard_output_of_the_hook_is_ignored() {
    let (offer, relayed) = offer("echo '# accept'; echo m; echo x; echo '# decline' >&2");
    assert!(matches!(offer, Offer::Full));
    assert_eq!(relayed, "");
}

#[test]
fn a_machine_that_does_not_answer_is_given_up_and_its_processes_end() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    // The grandchild represents an ssh that tries to connect for ever.
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let (offer, _) = offer_within(&script, Duration::from_millis(500));
    assert!(
        matches!(&offer, Offer::Failed(why) if why == "no answer within 500ms (`connect-timeout` in `[builders]`)")
    );
    let pid = std::fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let state = || std::fs::read_to_string(&stat).unwrap_or_default();
    // The process was killed, but on a busy machine it may take time to end. This is a limit for
    // hangs, not a measurement.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !(state().is_empty() || state().contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline, "still there: {}", state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_missing_program_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nix").display().to_string();
    let program = StockProgram::other(&missing, &[]);
    let mut delegate = InstalledHook {
        program,
        deadline: Duration::from_secs(1),
        variables: Vec::new(),
        sharing: None,
    };
    let machine = machine();
    let target = Target { machine: &machine, slot: None };
    let request = Request::of("a", "x86_64-linux", &[], true);
    let Offer::Here(why) = delegate.offer(&Settings::default(), target, &request, &mut |_| {})
    else {
        unreachable!()
    };
    assert_eq!(
        why.replace(&missing, "MISSING"),
        "Nix's own build hook cannot be started: MISSING (No such file or directory (os error 2)); put `nix` into PATH"
    );
}

#[test]
fn a_build_is_relayed_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let heard = directory.path().join("heard");
    let script = format!(
        "echo '@nix {{\"action\":\"msg\",\"level\":1,\"msg\":\"careful\"}}' >&2; echo plain >&2; echo '# accept' >&2; echo ssh://m >&2
         cat > {}; printf 'log \\377 line\\n# accept\\nno end' >&2; exit 7",
        heard.display()
    );
    let (offer, relayed) = offer(&script);
    let Offer::Accepted(build) = offer else { unreachable!("not accepted") };
    assert_eq!(relayed, "plain\n@nix {\"action\":\"msg\",\"level\":1,\"msg\":\"careful\"}\n");
    let mut reply = Vec::new();
    let inputs = Inputs::of(&["/nix/store/x", "/nix/store/y"]);
    let report = build.run(&inputs, &mut reply);
    assert_eq!(report.code, 7);
    assert!(matches!(report.ending, DelegationOutcome::Failed(_)), "{:?}", report.ending);
    assert_eq!(reply, b"log \xff line\n# accept\nno end");

    let mut expected = Vec::new();
    let settings = Settings::of(&[("builders", ""), ("cores", "1")]);
    settings.write(&mut expected, &machine().line_for_stock_hook()).unwrap();
    Request::of("a", "x86_64-linux", &["kvm"], true).write(&mut expected).unwrap();
    inputs.write(&mut expected).unwrap();
    assert_eq!(std::fs::read(heard).unwrap(), expected);
}

#[test]
fn a_build_ends_with_the_hook_even_if_its_standard_error_stays_open() {
    let (offer, _) =
        offer("printf '# accept\\nm\\n' >&2; cat > /dev/null; echo last >&2; sleep 5 & exit 0");
    let Offer::Accepted(build) = offer else { unreachable!("not accepted") };
    let mut reply = Vec::new();
    assert_eq!(build.run(&Inputs::of(&[]), &mut reply).ending, DelegationOutcome::Built);
    assert_eq!(reply, b"last\n");
}

#[test]
fn messages_become_plain_text() {
    assert_eq!(plain("\u{1b}[31;1merror:\u{1b}[0m a\n  b"), "a b");
    assert_eq!(plain("cannot build on 'ssh://m': error: gone"), "gone");
    assert_eq!(plain("odd \u{1b}"), "odd");
}

#[test]
fn the_other_name_is_replaced_and_the_last_error_is_held_back() {
    let state = tempfile::tempdir().unwrap();
    let crate::slots::slot_files::SlotResult::Slot(slot) =
        crate::slots::slot_files::SlotFiles::below(state.path()).take("ssh://m", 1)
    else {
        unreachable!("a free slot");
    };
    let other = slot.uri("ssh://m");
    let script = format!(
        "echo 'on {other}!' >&2; printf '# accept\\n{other}\\n' >&2; cat > /dev/null; echo '{other} and {other}' >&2; cat >&2 <<'X'
@nix {{\"action\":\"msg\",\"level\":0,\"msg\":\"error: x\",\"raw_msg\":\"unexpected end-of-file\"}}
X
exit 1"
    );
    let program = StockProgram::other("/bin/sh", &["-c", &script]);
    let mut delegate = InstalledHook {
        program,
        deadline: Duration::from_secs(20),
        variables: Vec::new(),
        sharing: None,
    };
    let mut relayed = Vec::new();
    let target = Target { machine: &machine(), slot: Some(&slot) };
    let request = Request::of("a", "x86_64-linux", &[], true);
    let offer = delegate
        .offer(&Settings::default(), target, &request, &mut |line| relayed.extend_from_slice(line));
    assert_eq!(relayed, b"on ssh://m!\n");
    let Offer::Accepted(build) = offer else { unreachable!("not accepted") };
    let mut reply = Vec::new();
    let report = build.run(&Inputs::of(&[]), &mut reply);
    assert_eq!(reply, b"ssh://m and ssh://m\n");
    assert_eq!(report.ending, DelegationOutcome::Lost("unexpected end-of-file".to_owned()));
    assert_eq!(report.held.len(), 1);
}
