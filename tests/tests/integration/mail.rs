//! Mail to a real server: what arrives, over which connection, and what each refusal means.

use std::path::Path;

use hookrun_capability::mail::{Mailer, Message, Sent, check};
use hookrun_capability::{CapabilityError, ErrorKind};
use hookrun_config::Config;
use hookrun_nix::dirs::Dirs;
use hookrun_tests::lab::{Scene, Script};
use hookrun_tests::smtp::{MailServer, PASSWORD, USERNAME};
use mail_parser::MessageParser;

/// Sends through `[mail.out]` with these `settings`; every recipient has to be accepted.
fn send(settings: &str, to: &[&str], message: &Message) -> Result<String, CapabilityError> {
    let state = tempfile::tempdir().unwrap();
    let sent = send_from(state.path(), settings, to, message)?;
    assert_eq!(sent.refused, []);
    Ok(sent.message_id)
}

/// The same with hookrun's state in `state`.
fn send_from(
    state: &Path,
    settings: &str,
    to: &[&str],
    message: &Message,
) -> Result<Sent, CapabilityError> {
    let text = format!(
        "[plugins.report]\nsource = \"bundled:email-on-nondeterminism\"\nconfig = {{ to = {to:?} }}\ngrant = {{ mail = [\"out\"] }}\n\
         [mail.out]\nfrom = \"Builds <hookrun@example.org>\"\n{settings}\n"
    );
    let config = Config::parse(Path::new("hookrun.toml"), &text).unwrap();
    let dirs = Dirs { config: "hookrun.toml".into(), state: state.to_owned() };
    check(&config, &dirs).unwrap();
    let to: Vec<String> = to.iter().map(ToString::to_string).collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
        Mailer::new(&config, &dirs).send(&config.plugins["report"], "out", &to, message, "task"),
    )
}

fn smtp(url: &str, more: &str) -> String {
    format!("transport = \"smtp\"\nurl = \"{url}\"\n{more}")
}

fn message() -> Message {
    Message {
        subject: "[hookrun] grüße, ein sehr langer Betreff, der gefaltet werden muss, weil er über die Zeile hinausgeht"
            .into(),
        // A dot alone ends SMTP data, and `From ` begins a message in an mbox; neither may happen
        // here.
        text: "Grüße.\n.\nFrom here\n..two\n".into(),
        html: Some("<p title=\"x\">Grüße &amp; mehr</p>\n".into()),
        headers: vec![("X-Hookrun-Event".into(), "1".into())],
        identity: "one".into(),
        in_reply_to: Some("zero".into()),
    }
}

#[test]
fn a_message_arrives_whole() {
    let Some(server) = MailServer::start() else { return };
    let id =
        send(&smtp(&server.url(""), ""), &["ann@example.org", "Bob <bob@example.org>"], &message())
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
    let ca = format!("ca-file = \"{}\"", server.ca_file().display());
    let login = format!(
        "{ca}\nusername = \"{USERNAME}\"\npassword-file = \"{}\"",
        server.password_file(PASSWORD).display()
    );
    // (URL, settings, recipient, what the server says of the connection)
    let ways = [
        (server.url(""), "", "a@example.org", "P=esmtp "),
        (server.url("?tls=opportunistic"), &*ca, "b@example.org", "P=esmtps "),
        (server.url("?tls=required"), &*ca, "c@example.org", "P=esmtps "),
        (server.tls_url(), &*ca, "d@example.org", "P=esmtps "),
        (server.url("?tls=required"), &*login, "e@private.example.org", "P=esmtpsa "),
        (server.tls_url(), &*login, "f@private.example.org", "P=esmtpsa "),
    ];
    for (index, (url, settings, to, protocol)) in ways.iter().enumerate() {
        send(&smtp(url, settings), &[to], &message())
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        server.delivered(index + 1);
        let log = server.log();
        let taken = log.lines().filter(|line| line.contains(" <= ")).nth(index).unwrap();
        assert!(taken.contains(protocol), "{url}: {taken}");
    }
    let log = server.log();
    assert_eq!(log.matches("A=plain:hookrun").count(), 2, "{log}");
}

#[test]
fn refused_mails_name_the_reason() {
    let Some(server) = MailServer::start() else { return };
    let ca = format!("ca-file = \"{}\"", server.ca_file().display());
    let wrong = server.password_file("Tr0ub4dor");
    let wrong_login =
        format!("{ca}\nusername = \"{USERNAME}\"\npassword-file = \"{}\"", wrong.display());
    let refused = |url: String, settings: &str, to: &[&str]| {
        let error = send(&smtp(&url, settings), to, &message()).unwrap_err();
        assert!(!error.message.contains('\n') && !error.message.contains("Tr0ub4dor"), "{error}");
        let plain = server.url("").rsplit(':').next().unwrap().to_owned();
        let tls = server.tls_url().rsplit(':').next().unwrap().to_owned();
        format!(
            "{}: {}",
            error.kind.as_str(),
            error.message.replace(&plain, "PORT").replace(&tls, "TLSPORT")
        )
    };
    let said = [
        refused(server.url(""), "", &["nobody@example.org", "nobody@private.example.org"]),
        refused(server.url(""), "", &["busy@example.org"]),
        refused(server.url(""), "", &["ann@example.net"]),
        refused(server.url("?tls=required"), &ca, &["ann@private.example.org"]),
        refused(server.tls_url(), &wrong_login, &["ann@private.example.org"]),
        // The machine does not know this authority.
        refused(server.tls_url(), "", &["ann@example.org"]),
        refused(server.url("?tls=required"), "", &["ann@example.org"]),
    ];
    insta::assert_snapshot!(said.join("\n"));
    assert_eq!(server.delivered_now().len(), 0);

    // TLS spoken to a port that does not: no panic, no hang, one line.
    let error = send(
        &smtp(&server.url("").replace("smtp:", "smtps:"), &ca),
        &["ann@example.org"],
        &message(),
    )
    .unwrap_err();
    assert!(
        matches!(error.kind, ErrorKind::Refused | ErrorKind::Transient)
            && !error.message.contains('\n'),
        "{error}"
    );

    let url = server.url("");
    drop(server);
    assert_eq!(
        send(&smtp(&url, ""), &["ann@example.org"], &message()).unwrap_err().kind,
        ErrorKind::Transient,
        "it may come back"
    );
}

/// Who is refused, whether for now, and how many mails there are.
fn verdicts(sent: &Sent) -> Vec<(&str, bool)> {
    sent.refused.iter().map(|one| (one.recipient.as_str(), one.transient)).collect()
}

#[test]
fn one_refused_recipient_does_not_silence_the_others() {
    let Some(server) = MailServer::start() else { return };
    for (index, to) in
        [["nobody@example.org", "ann@example.org"], ["ann@example.org", "nobody@example.org"]]
            .iter()
            .enumerate()
    {
        let state = tempfile::tempdir().unwrap();
        let sent = send_from(state.path(), &smtp(&server.url(""), ""), to, &message()).unwrap();
        assert_eq!(verdicts(&sent), [("nobody@example.org", false)]);
        assert_eq!(sent.refused[0].reason, "550 no such user here");
        let mails = server.delivered(index + 1);
        assert!(mails[index].contains("Envelope-to: ann@example.org"), "{mails:?}");
    }
}

#[test]
fn only_those_who_do_not_have_it_get_the_message_of_a_second_attempt() {
    let Some(server) = MailServer::start() else { return };
    let state = tempfile::tempdir().unwrap();
    let to = ["busy@example.org", "ann@example.org", "nobody@example.org"];
    let attempt = || send_from(state.path(), &smtp(&server.url(""), ""), &to, &message());
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
    // Another message is for everybody.
    let another = Message { identity: "another".into(), ..message() };
    send_from(state.path(), &smtp(&server.url(""), ""), &to, &another).unwrap();
    assert_eq!(server.delivered(2).len(), 2);
}

#[test]
fn by_the_sendmail_of_a_real_server() {
    let Some(server) = MailServer::start() else { return };
    let settings =
        format!("transport = \"sendmail\"\nprogram = \"{}\"", server.sendmail().display());
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
    let configuration = format!(
        r#"
[worker]
start = "none"
[plugins.nondeterminism]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = {{ to = ["ann@private.example.org"], transport = "out" }}
grant = {{ mail = ["out"], state = true }}
[mail.out]
transport = "smtp"
url = "{}"
from = "hookrun@example.org"
username = "{USERNAME}"
password-file = "{}"
ca-file = "{}"
"#,
        server.tls_url(),
        server.password_file(PASSWORD).display(),
        server.ca_file().display(),
    );
    let scene = Scene::new().config(&configuration).derivation("random", Script::random());
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
    // The same finding once more: known, not mailed again.
    scene.check("random").expect_exit(104);
    scene.drain().expect_success();
    assert_eq!(server.delivered_now().len(), 1, "{}", scene.hookrun(&["log"]).stdout);
}
