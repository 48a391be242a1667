mod sendmail;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use lettre::message::Mailbox;

use self::sendmail::sendmail_scene;
use super::recipients::recipient;
use super::*;
use hookrun_config::MailTransport;

const CONFIGURATION: &str = r#"
[plugins.nondeterminism]
source = "bundled:email-on-nondeterminism"
config = { to = ["builds@example.org", "Ann <ann@example.org>"] }
grant = { mail = ["default"] }
[mail.default]
to = ["root@localhost"]
from = "hookrun@example.org"
"#;

struct Scene {
    mailer: Mailer,
    plugin: config::Plugin,
    state: tempfile::TempDir,
}

fn scene(text: &str, capture: bool) -> Scene {
    let state = tempfile::tempdir().unwrap();
    let config = Config::parse(Path::new("/etc/hookrun/hookrun.toml"), text).unwrap();
    let dirs = Dirs { config: config.path.clone(), state: state.path().to_owned() };
    let mut mailer =
        if capture { Mailer::capturing(&config, &dirs) } else { Mailer::new(&config, &dirs) };
    mailer.host = "build1".to_owned();
    Scene { mailer, plugin: config.plugins["nondeterminism"].clone(), state }
}

fn message() -> Message {
    Message {
        subject: "not reproducible: grüße-1.0".into(),
        text: "First line.\nZweite Zeile: ä.\n.\nFrom here on.\n".into(),
        html: Some("<p>Gr\u{fc}\u{df}e</p>".into()),
        headers: vec![("X-Hookrun-Derivation".into(), "/nix/store/x.drv".into())],
        identity: "one".into(),
        in_reply_to: Some("zero".into()),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Scene {
    fn send(&self, to: &[&str], message: &Message) -> Result<String, CapabilityError> {
        let to: Vec<String> = to.iter().map(ToString::to_string).collect();
        let sent = run(self.mailer.send(&self.plugin, "default", &to, message, ""))?;
        assert_eq!(sent.refused, []);
        Ok(sent.message_id)
    }
}

/// Returns the text without the boundary of the parts, which is random.
fn without_boundary(raw: &[u8]) -> String {
    let text = String::from_utf8(raw.to_vec()).unwrap().replace("\r\n", "\n");
    let boundary = text
        .split("boundary=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap()
        .to_owned();
    text.replace(&boundary, "BOUNDARY")
}

#[test]
fn a_message_is_composed_with_text_and_html_parts() {
    let from: Mailbox = "hookrun@example.org".parse().unwrap();
    let to = ["Ann <ann@example.org>", "root@localhost"]
        .map(|text| recipient(text, MailTransport::Smtp, "build1").unwrap());
    let composed = compose::compose(
        "nondeterminism",
        "build1",
        from,
        &to,
        &message(),
        UNIX_EPOCH + Duration::from_secs(1_700_000_000),
    )
    .unwrap();
    assert!(composed.raw.is_ascii(), "no server needs 8BITMIME or SMTPUTF8 for it");
    insta::assert_snapshot!(without_boundary(&composed.raw));
}

#[test]
fn message_ids_are_stable_and_thread() {
    let id = compose::message_id("a", "one", "build1");
    assert_eq!(id, compose::message_id("a", "one", "build1"));
    assert_ne!(
        id,
        compose::message_id("b", "one", "build1"),
        "another plugin cannot take part in the thread"
    );
    assert_ne!(compose::message_id("ab", "c", "h"), compose::message_id("a", "bc", "h"));
    assert_ne!(
        compose::message_id("a", "", "h"),
        compose::message_id("a", "", "h"),
        "no identity: a fresh one"
    );
    assert_eq!(compose::host_name("bad host\r\n"), "localhost");
    assert_eq!(compose::host_name("build1.example.org"), "build1.example.org");
}

#[test]
fn a_delivery_creates_a_maildir_with_one_file_per_message() {
    let scene = scene(CONFIGURATION, false);
    let id = scene.send(&["builds@example.org"], &message()).unwrap();
    let another = Message { identity: "two".into(), ..message() };
    scene.send(&["builds@example.org"], &another).unwrap();
    let maildir = scene.state.path().join("mail/default");
    for part in ["tmp", "new", "cur"] {
        assert_eq!(
            maildir.join(part).metadata().unwrap().permissions().mode() & 0o7777,
            0o700,
            "{part}"
        );
    }
    assert_eq!(std::fs::read_dir(maildir.join("tmp")).unwrap().count(), 0);
    let files: Vec<_> = std::fs::read_dir(maildir.join("new"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 2, "no delivery takes another's name");
    assert_eq!(files[0].metadata().unwrap().mode() & 0o777, 0o600);
    let texts: Vec<_> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert!(!texts.concat().contains('\r'), "{texts:?}");
    assert!(texts.concat().contains(&format!("Message-ID: {id}\n")), "{texts:?}");
}

#[test]
fn a_maildir_that_cannot_be_written_is_reported_with_the_fix() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = CONFIGURATION.replace(
        "[mail.default]",
        &format!("[mail.default]\ndirectory = \"{}\"", file.path().display()),
    );
    let error = scene(&text, false).send(&["root@localhost"], &message()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    let shown = error
        .message
        .replace(&file.path().display().to_string(), "FILE")
        .replace(&error::current_user(), "USER");
    insta::assert_snapshot!(shown);
}

#[test]
fn only_recipients_in_the_configuration_are_accepted() {
    let scene = scene(CONFIGURATION, true);
    scene
        .send(&["ANN <ann@EXAMPLE.org>", "root@localhost", "ann@example.org"], &message())
        .unwrap();
    assert_eq!(scene.mailer.captured()[0].recipients, ["ann@EXAMPLE.org", "root@localhost"]);
    let errors: Vec<String> = [
        &["mallory@example.net"][..],
        &["root@localhost", "Ann@example.org"],
        &[],
        &["root@localhost\r\nBcc: mallory@example.net"],
        &["ro ot"],
        &["-oQ/tmp@localhost"],
        &["root@localhost, mallory@example.net"],
    ]
    .iter()
    .map(|to| {
        let error = scene.send(to, &message()).unwrap_err();
        format!("{}: {error}", error.kind.as_str())
    })
    .collect();
    assert_eq!(scene.mailer.captured().len(), 1, "nothing refused was taken");
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn text_of_a_plugin_cannot_create_headers() {
    let scene = scene(CONFIGURATION, true);
    let refused = |change: &dyn Fn(&mut Message)| {
        let mut message = message();
        change(&mut message);
        let error = scene.send(&["root@localhost"], &message).unwrap_err();
        format!("{}: {error}", error.kind.as_str())
    };
    let header = |name: &str, value: &str| {
        let header = (name.to_owned(), value.to_owned());
        refused(&move |message| message.headers = vec![header.clone()])
    };
    let errors = [
        refused(&|message| message.subject = "a\r\nBcc: mallory@example.net".into()),
        refused(&|message| message.subject = "a\nb".into()),
        refused(&|message| message.subject = " ".into()),
        refused(&|message| message.subject = "x".repeat(500)),
        header("Bcc", "mallory@example.net"),
        header("X-A: b\r\nBcc", "mallory@example.net"),
        header("X-", "a"),
        header("X-A", "b\r\n\r\n<script>"),
        header("X-A", "b\0"),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn the_host_overrides_its_own_header() {
    let scene = scene(CONFIGURATION, true);
    let mut message = message();
    message.headers = vec![("x-hookrun-plugin".into(), "another".into())];
    scene.send(&["root@localhost"], &message).unwrap();
    let raw = String::from_utf8(scene.mailer.captured()[0].raw.clone()).unwrap();
    assert!(
        raw.contains("X-Hookrun-Plugin: nondeterminism\r\n") && !raw.contains("another"),
        "{raw}"
    );
}

#[test]
fn contradictory_settings_are_refused_with_the_fix() {
    let errors: Vec<String> = [
        "transport = \"smtp\"",
        "transport = \"smtp\"\nurl = \"mail.example.org\"",
        "transport = \"smtp\"\nurl = \"http://mail.example.org\"",
        "transport = \"smtp\"\nurl = \"smtp://\"",
        "transport = \"smtp\"\nurl = \"smtps://u:secret@mail.example.org\"",
        "transport = \"smtp\"\nurl = \"smtp://mail.example.org?tls=maybe\"",
        "transport = \"smtp\"\nurl = \"smtps://mail.example.org?tls=required\"",
        "transport = \"smtp\"\nurl = \"smtps://mail.example.org\"\nusername = \"u\"",
        "transport = \"smtp\"\nurl = \"smtps://mail.example.org\"\npassword-file = \"/p\"",
        "transport = \"smtp\"\nurl = \"smtp://mail.example.org\"\nusername = \"u\"\npassword-file = \"/p\"",
        "url = \"smtps://mail.example.org\"",
        "transport = \"smtp\"\nurl = \"smtps://mail.example.org\"\ndirectory = \"/m\"",
        "transport = \"smtp\"\nurl = \"smtps://mail.example.org\"\nhelo-name = \"bad name\"",
        "helo-name = \"build1.example.org\"",
        "from = \"nobody\"",
        "to = [\"root@localhost\", \"a b\"]",
    ]
    .iter()
    .map(|text| {
        let text = format!("[mail.out]\n{text}\n");
        let config = Config::parse(Path::new("hookrun.toml"), &text).unwrap();
        described(&config).expect_err(&text)
    })
    .collect();
    assert!(!errors.join("").contains("secret"));
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn the_embedded_configuration_has_valid_mail_settings() {
    let config = Config::parse(Path::new("hookrun.toml"), config::EMBEDDED).unwrap();
    described(&config).unwrap();
}

#[test]
fn a_server_that_is_down_is_worth_a_retry() {
    // The port was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = CONFIGURATION.replace(
        "[mail.default]",
        &format!("[mail.default]\ntransport = \"smtp\"\nurl = \"smtp://127.0.0.1:{port}\""),
    );
    let error = scene(&text, false).send(&["root@localhost"], &message()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient);
    insta::assert_snapshot!(error.message.replace(&port.to_string(), "PORT"));
}

#[test]
fn a_missing_password_file_is_reported_with_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("password").display().to_string();
    let text = CONFIGURATION.replace(
        "[mail.default]",
        &format!(
            "[mail.default]\ntransport = \"smtp\"\nurl = \"smtps://127.0.0.1\"\nusername = \"u\"\npassword-file = \"{missing}\""
        ),
    );
    let error = scene(&text, false).send(&["root@localhost"], &message()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    let shown = error.message.replace(&error::current_user(), "USER").replace(&missing, "FILE");
    insta::assert_snapshot!(shown);
}

#[test]
fn a_user_name_is_a_valid_recipient_of_local_delivery() {
    let (scene, directory) = sendmail_scene(0);
    let mut scene = scene;
    scene.plugin.config = serde_json::json!({ "to": ["root", "ann@example.org"] });
    scene.send(&["root"], &message()).unwrap();
    let args = std::fs::read_to_string(directory.path().join("args")).unwrap();
    assert!(args.ends_with("--\nroot\n"), "{args}");
    let body = std::fs::read_to_string(directory.path().join("body")).unwrap();
    assert!(body.contains("To: root@build1\n"), "{body}");
}

/// Returns the result of `check` for these recipients.
fn checked(transport: &str, to: &str) -> Result<(), String> {
    let text = format!(
        "[plugins.report]\nsource = \"bundled:email-on-nondeterminism\"\nconfig = {{ to = {to} }}\ngrant = {{ mail = [\"out\"] }}\n\
         [mail.out]\n{transport}\n"
    );
    let config = Config::parse(Path::new("hookrun.toml"), &text).unwrap();
    described(&config)
}

/// Returns the result of checking a configuration, with its message as it is shown.
fn described(config: &Config) -> Result<(), String> {
    let dirs = Dirs { config: "hookrun.toml".into(), state: "/state".into() };
    check(config, &dirs).map_err(|KeyError { keys, message }| {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        config.error(&keys, message).to_string()
    })
}

#[test]
fn check_refuses_recipients_that_can_never_receive_mail() {
    const SMTP: &str = "transport = \"smtp\"\nurl = \"smtps://mail.example.org\"";
    const SENDMAIL: &str = "transport = \"sendmail\"";
    for to in ["\"root\"", "[\"ann@example.org\", \"build-admins\"]"] {
        assert_eq!(checked(SENDMAIL, to), Ok(()), "{to}");
        assert_eq!(checked("", to), Ok(()), "{to} into a maildir");
    }
    assert_eq!(checked(SMTP, "\"Ann <ann@b\u{fc}cher.example>\""), Ok(()));
    let errors: Vec<String> = [
        (SMTP, "\"root\""),
        (SMTP, "[\"ann@example.org\", \"build-admins\"]"),
        (SMTP, "\"ann@\""),
        (SMTP, "\"@example.org\""),
        (SMTP, "\"gr\u{fc}n@example.org\""),
        (SENDMAIL, "\"-oQ/tmp\""),
        (SENDMAIL, "\"a b\""),
        (SENDMAIL, "\"\""),
    ]
    .iter()
    .map(|(transport, to)| checked(transport, to).expect_err(to))
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn a_domain_that_is_not_ascii_is_encoded() {
    assert_eq!(
        mailbox("ann@b\u{fc}cher.example").unwrap().email.as_ref() as &str,
        "ann@xn--bcher-kva.example"
    );
}

proptest::proptest! {
    /// For any text of a plugin, the body has no line end except CR LF, and no NUL.
    #[test]
    fn no_bare_line_end_in_a_message(text in "(?s:[\r\n\0.a\u{e4}]{0,60})", html in proptest::option::of("(?s:[\r\n\0.<a]{0,60})")) {
        let from: Mailbox = "hookrun@example.org".parse().unwrap();
        let to = recipient("root@localhost", MailTransport::Smtp, "h").unwrap();
        let message = Message { subject: "s".into(), text, html, ..Message::default() };
        let composed = compose::compose("p", "h", from, &[to], &message, UNIX_EPOCH).unwrap();
        let raw = String::from_utf8(composed.raw).unwrap();
        let rest = raw.replace("\r\n", "");
        proptest::prop_assert!(!rest.contains(['\r', '\n', '\0']), "{:?}", raw);
    }
}

proptest::proptest! {
    /// For any text of a plugin, the header section has the expected headers and no others.
    #[test]
    fn no_header_by_any_text(
        subject in "\\PC{0,80}|(?s:.{0,80})",
        value in "(?s:.{0,80})",
        name in "X-[A-Za-z]{1,10}|(?s:.{0,10})",
        text in "(?s:.{0,200})",
        identity in "(?s:.{0,20})",
        answered in "(?s:.{0,20})",
    ) {
        let message = Message {
            subject, text, html: None, headers: vec![(name.clone(), value)], identity, in_reply_to: Some(answered),
        };
        let from: Mailbox = "hookrun@example.org".parse().unwrap();
        let to = recipient("root@localhost", MailTransport::Smtp, "h").unwrap();
        if let Ok(composed) = compose::compose("p", "h", from, &[to], &message, UNIX_EPOCH) {
            proptest::prop_assert!(composed.raw.is_ascii());
            let raw = String::from_utf8(composed.raw).unwrap();
            let (head, _) = raw.split_once("\r\n\r\n").unwrap();
            proptest::prop_assert!(!head.replace("\r\n", "").contains(['\r', '\n']));
            let known = ["From", "To", "Date", "Subject", "Message-ID", "In-Reply-To", "References", "Auto-Submitted",
                "X-Hookrun-Plugin", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"];
            for line in head.split("\r\n").filter(|line| !line.starts_with([' ', '\t'])) {
                let header = line.split(':').next().unwrap();
                proptest::prop_assert!(known.contains(&header) || header.eq_ignore_ascii_case(&name), "{}", line);
            }
        }
    }
}
