//! Mail to a real server: messages, connections and refusals.

use std::path::Path;

use hookrun_capability::mail::{Mailer, Message, Sent, check};
use hookrun_capability::{CapabilityError, ErrorKind};
use hookrun_config::Config;
use hookrun_nix::dirs::Dirs;
use hookrun_tests::lab::{ConfigFile, PluginTable, Scene, Script, toml};
use hookrun_tests::smtp::{MailServer, PASSWORD, USERNAME};
use mail_parser::MessageParser;
use toml::Table;

/// Sends through `[mail.out]` with these settings, and fails unless every recipient is accepted.
fn send(settings: &Table, to: &[&str], message: &Message) -> Result<String, CapabilityError> {
    let state = tempfile::tempdir().unwrap();
    let sent = send_from(state.path(), settings, to, message)?;
    assert_eq!(sent.refused, []);
    Ok(sent.message_id)
}

/// Sends through `[mail.out]` with these settings and this state directory.
fn send_from(
    state: &Path,
    settings: &Table,
    to: &[&str],
    message: &Message,
) -> Result<Sent, CapabilityError> {
    let mut transport = toml! { from = "Builds <hookrun@example.org>" };
    transport.extend(settings.clone());
    let file = ConfigFile::new()
        .plugin(
            "report",
            PluginTable::mailer("out", "ann@example.org").config(toml! { to = (to.to_vec()) }),
        )
        .mail("out", transport);
    let config = Config::parse(Path::new("hookrun.toml"), &file.to_string()).unwrap();
    let dirs = Dirs { config: "hookrun.toml".into(), state: state.to_owned() };
    check(&config, &dirs).unwrap();
    let to: Vec<String> = to.iter().map(ToString::to_string).collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
        Mailer::new(&config, &dirs).send(&config.plugins["report"], "out", &to, message, "task"),
    )
}

/// A transport to this server without a login.
fn smtp(url: &str) -> Table {
    toml! { transport = "smtp" url = url }
}

/// A transport to this server that trusts the authority of `server`.
fn trusting(url: &str, server: &MailServer) -> Table {
    let mut table = smtp(url);
    table.extend(toml! { ca-file = (server.ca_file().display().to_string()) });
    table
}

/// A transport to this server that trusts the authority of `server` and logs in.
fn logging_in(url: &str, server: &MailServer, password: &str) -> Table {
    let mut table = trusting(url, server);
    let password_file = server.password_file(password).display().to_string();
    table.extend(toml! { username = USERNAME password-file = password_file });
    table
}

fn message() -> Message {
    Message {
        subject: "[hookrun] grüße, ein sehr langer Betreff, der gefaltet werden muss, weil er über die Zeile hinausgeht"
            .into(),
        // A line with a single dot ends SMTP data, and `From ` begins a message in an mbox. Neither
        // may happen here.
        text: "Grüße.\n.\nFrom here\n..two\n".into(),
        html: Some("<p title=\"x\">Grüße &amp; mehr</p>\n".into()),
        headers: vec![("X-Hookrun-Event".into(), "1".into())],
        identity: "one".into(),
        in_reply_to: Some("zero".into()),
    }
}

#[test]
fn a_message_arrives_complete() {
    let Some(server) = MailServer::start() else { return };
    let id =
        send(&smtp(&server.url("")), &["ann@example.org", "Bob <bob@example.org>"], &message())
            .unwrap();
    let mails = server.delivered(2);
    let envelope: Vec<&str> = mails
        .iter()
        .filter_map(|mail| mail.lines().find(|line| line.starts_with("Envelope-to")))
        .collect();
    assert_eq!(envelope, ["Envelope-to: ann@example.org", "Envelope-to: bob@example.org"]);
    for mail in &mails {
        let parsed = MessageParser::default().parse(mail).unwrap();
        assert_eq!(parsed.subject().unwrap(), message().subject);
        assert_eq!(parsed.body_text(0).unwrap().replace("\r\n", "\n"), message().text);
        assert_eq!(parsed.body_html(0).unwrap().replace("\r\n", "\n"), message().html.unwrap());
        assert_eq!(
            (parsed.text_body_count(), parsed.html_body_count(), parsed.attachment_count()),
            (1, 1, 0)
        );
        assert_eq!(format!("<{}>", parsed.message_id().unwrap()), id);
        assert_eq!(parsed.in_reply_to().as_text(), parsed.references().as_text());
        assert!(parsed.in_reply_to().as_text().is_some() && parsed.date().is_some());
        assert_eq!(
            parsed.from().unwrap().first().unwrap().address().unwrap(),
            "hookrun@example.org"
        );
        assert_eq!(parsed.to().unwrap().iter().count(), 2);
        assert_eq!(parsed.return_address().unwrap(), "hookrun@example.org");
        for (name, value) in [
            ("Auto-Submitted", "auto-generated"),
            ("X-Hookrun-Event", "1"),
            ("X-Hookrun-Plugin", "report"),
        ] {
            assert_eq!(parsed.header(name).unwrap().as_text().unwrap(), value);
        }
    }
}

#[test]
fn mails_are_sent_with_encryption_and_login() {
    let Some(server) = MailServer::start() else { return };
    let trusting = |url: &str| trusting(url, &server);
    let logging_in = |url: &str| logging_in(url, &server, PASSWORD);
    // (settings, recipient, the protocol in the log of the server)
    let ways = [
        (smtp(&server.url("")), "a@example.org", "P=esmtp "),
        (trusting(&server.url("?tls=opportunistic")), "b@example.org", "P=esmtps "),
        (trusting(&server.url("?tls=required")), "c@example.org", "P=esmtps "),
        (trusting(&server.tls_url()), "d@example.org", "P=esmtps "),
        (logging_in(&server.url("?tls=required")), "e@private.example.org", "P=esmtpsa "),
        (logging_in(&server.tls_url()), "f@private.example.org", "P=esmtpsa "),
    ];
    for (index, (settings, to, protocol)) in ways.iter().enumerate() {
        send(settings, &[to], &message()).unwrap_or_else(|error| panic!("{settings}: {error}"));
        server.delivered(index + 1);
        let log = server.log();
        let accepted = log.lines().filter(|line| line.contains(" <= ")).nth(index).unwrap();
        assert!(accepted.contains(protocol), "{settings}: {accepted}");
    }
    let log = server.log();
    assert_eq!(log.matches("A=plain:hookrun").count(), 2, "{log}");
}

#[test]
fn refused_mails_name_the_reason() {
    let Some(server) = MailServer::start() else { return };
    let refused = |settings: &Table, to: &[&str]| {
        let error = send(settings, to, &message()).unwrap_err();
        assert!(!error.message.contains('\n') && !error.message.contains("Tr0ub4dor"), "{error}");
        let plain = server.url("").rsplit(':').next().unwrap().to_owned();
        let tls = server.tls_url().rsplit(':').next().unwrap().to_owned();
        format!(
            "{}: {}",
            error.kind.as_str(),
            error.message.replace(&plain, "PORT").replace(&tls, "TLSPORT")
        )
    };
    let (plain, with_tls) = (smtp(&server.url("")), server.url("?tls=required"));
    let wrong_login = logging_in(&server.tls_url(), &server, "Tr0ub4dor");
    let said = [
        refused(&plain, &["nobody@example.org", "nobody@private.example.org"]),
        refused(&plain, &["busy@example.org"]),
        refused(&plain, &["ann@example.net"]),
        refused(&trusting(&with_tls, &server), &["ann@private.example.org"]),
        refused(&wrong_login, &["ann@private.example.org"]),
        // The machine does not know this authority.
        refused(&smtp(&server.tls_url()), &["ann@example.org"]),
        refused(&smtp(&with_tls), &["ann@example.org"]),
    ];
    insta::assert_snapshot!(said.join("\n"));
    assert_eq!(server.delivered_now().len(), 0);

    // TLS to a port without TLS is an error of one line.
    let wrong_port = server.url("").replace("smtp:", "smtps:");
    let error =
        send(&trusting(&wrong_port, &server), &["ann@example.org"], &message()).unwrap_err();
    assert!(
        matches!(error.kind, ErrorKind::Refused | ErrorKind::Transient)
            && !error.message.contains('\n'),
        "{error}"
    );

    drop(server);
    assert_eq!(
        send(&plain, &["ann@example.org"], &message()).unwrap_err().kind,
        ErrorKind::Transient,
        "the server may come back"
    );
}

/// Returns the refused recipients, and whether each refusal is transient.
fn verdicts(sent: &Sent) -> Vec<(&str, bool)> {
    sent.refused.iter().map(|one| (one.recipient.as_str(), one.transient)).collect()
}

#[test]
fn a_refused_recipient_does_not_affect_the_others() {
    let Some(server) = MailServer::start() else { return };
    for (index, to) in
        [["nobody@example.org", "ann@example.org"], ["ann@example.org", "nobody@example.org"]]
            .iter()
            .enumerate()
    {
        let state = tempfile::tempdir().unwrap();
        let sent = send_from(state.path(), &smtp(&server.url("")), to, &message()).unwrap();
        assert_eq!(verdicts(&sent), [("nobody@example.org", false)]);
        assert_eq!(sent.refused[0].reason, "550 no such user here");
        let mails = server.delivered(index + 1);
        assert!(mails[index].contains("Envelope-to: ann@example.org"), "{mails:?}");
    }
}

#[test]
fn a_second_attempt_sends_the_message_only_to_recipients_that_do_not_have_it() {
    let Some(server) = MailServer::start() else { return };
    let state = tempfile::tempdir().unwrap();
    let to = ["busy@example.org", "ann@example.org", "nobody@example.org"];
    let attempt = || send_from(state.path(), &smtp(&server.url("")), &to, &message());
    let sent = attempt().unwrap();
    assert_eq!(verdicts(&sent), [("nobody@example.org", false), ("busy@example.org", true)]);
    let error = attempt().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient);
    assert_eq!(
        error.message,
        "mail transport `out`: still not accepted: nobody@example.org (550 no such user here), \
         busy@example.org (451 come back later); the other recipients have the message; it will be \
         tried again"
    );
    assert_eq!(server.delivered(1).len(), 1);
    let asked = |who: &str| server.log().matches(&format!("rejected RCPT <{who}>")).count();
    // Exim writes each refusal into two logs.
    assert_eq!((asked("nobody@example.org"), asked("busy@example.org")), (2, 4));
    // Another message is sent to all recipients.
    let another = Message { identity: "another".into(), ..message() };
    send_from(state.path(), &smtp(&server.url("")), &to, &another).unwrap();
    assert_eq!(server.delivered(2).len(), 2);
}

#[test]
fn mails_are_sent_by_the_sendmail_program_of_a_server() {
    let Some(server) = MailServer::start() else { return };
    let settings =
        toml! { transport = "sendmail" program = (server.sendmail().display().to_string()) };
    send(&settings, &["ann@example.org", "bob@example.org"], &message()).unwrap();
    for mail in server.delivered(2) {
        let parsed = MessageParser::default().parse(&mail).unwrap();
        assert_eq!(parsed.body_text(0).unwrap().replace("\r\n", "\n"), message().text);
        assert_eq!(parsed.return_address().unwrap(), "hookrun@example.org");
    }
}

#[test]
fn a_build_that_is_not_reproducible_is_mailed_over_smtp() {
    let Some(server) = MailServer::start() else { return };
    let transport = server.transport(&server.password_file(PASSWORD));
    let file = ConfigFile::new()
        .plugin("nondeterminism", PluginTable::mailer("out", "ann@private.example.org"))
        .mail("out", transport);
    let scene = Scene::new().config(&file).derivation("random", Script::random());
    let previous = scene.build("random").expect_success().path();
    scene.check("random").expect_exit(104).expect_stderr("may not be deterministic");
    scene.drain().expect_success();
    let mails = server.delivered(1);
    let parsed = MessageParser::default().parse(&mails[0]).unwrap();
    assert_eq!(parsed.subject().unwrap(), "[hookrun] not reproducible: random (out)");
    let (text, html) = (parsed.body_text(0).unwrap(), parsed.body_html(0).unwrap());
    let drv_path = scene.drv_path("random").display().to_string();
    let check = format!("{}.check", previous.display());
    for part in [&*text, &*html] {
        for fact in [
            &*drv_path,
            previous.to_str().unwrap(),
            &check,
            "file differs",
            "diffoscope",
            "nix-build --check -K",
        ] {
            assert!(part.contains(fact), "`{fact}` is not in: {part}");
        }
    }
    // The same finding is not mailed again.
    scene.check("random").expect_exit(104);
    scene.drain().expect_success();
    assert_eq!(server.delivered_now().len(), 1, "{}", scene.hookrun(&["log"]).stdout);
}
