use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use hookrun_sdk::mail::{Refusal, Sent};
use hookrun_sdk::{Error, ErrorKind};
use proptest::prelude::*;

use crate::finding::{Difference, Finding, package_name};
use crate::handle::{Mail, Mailer, Memory, compose, handle};
use crate::history::Reason;
use crate::settings::Settings;

fn settings() -> Settings {
    Settings::parse(r#"{"to": ["builds@example.org"]}"#).unwrap()
}

fn difference(
    path: &str,
    kind: &str,
    previous: &str,
    current: &str,
    offset: Option<u64>,
) -> Difference {
    Difference {
        path: path.into(),
        kind: kind.into(),
        previous: previous.into(),
        current: current.into(),
        offset,
        ..Difference::default()
    }
}

/// Returns a finding with one difference of each kind, and with hostile names.
fn finding() -> Finding {
    Finding {
        id: "019a0000-0000-7000-8000-000000000001".into(),
        time_ms: 1_795_376_832_000,
        host: "build17.example.org".into(),
        drv_path: "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12.drv".into(),
        name: "hello-2.12".into(),
        output: "out".into(),
        previous_path: "/nix/store/9qsc7sdkmv5whlrhc07hk7gzsg1b3j2v-hello-2.12".into(),
        current_path: "/nix/store/9qsc7sdkmv5whlrhc07hk7gzsg1b3j2v-hello-2.12.check".into(),
        differences: vec![
            difference(
                "bin/hello",
                "content",
                "\"built 2026-11-22 \"",
                "\"built 2026-11-23 \"",
                Some(74_565),
            ),
            difference("bin/hello", "size", "148320", "148328", None),
            difference(
                "lib/current",
                "link-target",
                "libhello.so.2.12-a91f",
                "libhello.so.2.12-77c0",
                None,
            ),
            difference(
                "share/<script>alert(1)</script>.html",
                "content",
                "\"</pre><img src=x>\"",
                "\"&amp;`x`\"",
                Some(0),
            ),
            difference(
                "share/man/man1/hello.1.gz",
                "content",
                "1f 8b 08 00 12 34",
                "1f 8b 08 00 12 35",
                Some(5),
            ),
            difference("share/temp\u{202e}gpj.\nexe", "only-in-current", "", "regular", None),
            difference("share/run", "mode", "0444", "0555", None),
            difference("share/thing", "type", "regular", "symlink", None),
        ],
        incomplete: None,
        compared_files: 214,
        compared_bytes: 12_897_000,
        user: Some("ann".into()),
        command: Some("nix-build --check -A hello".into()),
        nix: Some("2.28.3".into()),
    }
}

#[test]
fn the_text_part_of_a_mail() {
    let mail = compose(&finding(), &settings(), &Reason::First, None);
    insta::assert_snapshot!(format!("Subject: {}\n\n{}", mail.subject, mail.text));
}

#[test]
fn the_text_part_of_an_incomplete_finding() {
    let finding = Finding {
        differences: vec![difference("", "content", "", "", None)],
        incomplete: Some("the comparison reached its time limit of 1s 500ms".into()),
        output: String::new(),
        compared_files: 1,
        compared_bytes: 1,
        ..finding()
    };
    let mail = compose(&finding, &settings(), &Reason::Again { unmailed: 3 }, Some("first"));
    insta::assert_snapshot!(format!("Subject: {}\n\n{}", mail.subject, mail.text));
}

#[test]
fn the_html_part_of_a_mail() {
    let mail = compose(&finding(), &settings(), &Reason::First, None);
    let (_, body) = mail.html.split_once("</style>").unwrap();
    insta::assert_snapshot!(body);
}

/// Writes the page to a file that a browser can open: `HOOKRUN_WRITE_SAMPLE=/tmp/mail.html cargo
/// nextest run sample`.
#[test]
fn a_sample_page_is_rendered() {
    if let Some(path) = std::env::var_os("HOOKRUN_WRITE_SAMPLE") {
        std::fs::write(path, compose(&finding(), &settings(), &Reason::First, None).html).unwrap();
    }
}

#[test]
fn many_differences_are_counted() {
    let differences = (0..4_332)
        .map(|n| difference(&format!("f{n:05}"), "content", "\"a\"", "\"b\"", Some(n)))
        .collect();
    let mail = compose(&Finding { differences, ..finding() }, &settings(), &Reason::First, None);
    assert!(mail.text.contains("\n4,332 files differ\n"), "{}", mail.text);
    for n in 0..4_332 {
        assert!(mail.text.contains(&format!("f{n:05}")), "{n} is not named");
    }
    assert!(mail.html.len() < 100_000, "{}", mail.html.len());
}

#[test]
fn commands_are_never_cut() {
    let store = format!("/{}/store", "deep/".repeat(80));
    let path = |name: &str| format!("{store}/{}-{}{name}", "a".repeat(32), "n".repeat(200));
    let finding = Finding {
        drv_path: path(".drv"),
        previous_path: path(""),
        current_path: path(".check"),
        ..finding()
    };
    let mail = compose(&finding, &settings(), &Reason::First, None);
    for command in [
        format!("    nix-build --check -K {}\n", path(".drv")),
        format!("    diffoscope {} {}\n", path(""), path(".check")),
    ] {
        assert!(mail.text.contains(&command), "{}", mail.text);
    }
    assert!(mail.html.contains(&path(".check")));
}

#[test]
fn a_package_that_was_changed_and_still_differs_is_mailed_again() {
    let host = Host::default();
    host.handle(&later(0, "a"));
    let repaired = Finding {
        drv_path: "/nix/store/cvar8nqq71gb8af77ichz56mh6f9hd65-hello-2.12.drv".into(),
        ..later(1, "b")
    };
    host.handle(&repaired);
    assert_eq!(host.sent(), 2);
    let note = "The derivation has changed since the previous mail";
    assert!(host.sent.borrow()[1].text.contains(note), "{}", host.sent.borrow()[1].text);
    host.handle(&Finding { id: "c".into(), ..repaired });
    assert_eq!(host.sent(), 2, "known now");
}

#[test]
fn a_package_name_ends_before_the_version() {
    for (name, package) in [
        ("hello-2.12", "hello"),
        ("gtk+3-doc", "gtk+3-doc"),
        ("a-b-1.0-rc2", "a-b"),
        ("x", "x"),
        ("x-", "x-"),
        ("", ""),
    ] {
        assert_eq!(package_name(name), package);
    }
}

/// A host in memory.
#[derive(Default)]
struct Host {
    store: RefCell<BTreeMap<String, Vec<u8>>>,
    sent: RefCell<Vec<Mail>>,
    no_state: bool,
    room: Cell<Option<usize>>,
    mail_fails: Cell<bool>,
    refused: RefCell<Vec<Refusal>>,
}

fn refusal(kind: ErrorKind) -> Error {
    Error { kind, message: format!("it is {kind:?}"), retry_after: None }
}

impl Memory for Host {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        if self.no_state {
            Err(refusal(ErrorKind::Denied))
        } else {
            Ok(self.store.borrow().get(key).cloned())
        }
    }
    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        let mut store = self.store.borrow_mut();
        if self.room.get().is_some_and(|room| store.len() >= room && !store.contains_key(key)) {
            return Err(refusal(ErrorKind::Limit));
        }
        store.insert(key.into(), value.into());
        Ok(())
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.store.borrow_mut().remove(key);
        Ok(())
    }
    fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        Ok(self.store.borrow().keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

impl Mailer for Host {
    fn send(&self, transport: &str, to: &[String], mail: &Mail) -> Result<Sent, Error> {
        assert_eq!((transport, to), ("default", &["builds@example.org".to_owned()][..]));
        if self.mail_fails.get() {
            return Err(refusal(ErrorKind::Transient));
        }
        self.sent.borrow_mut().push(mail.clone());
        Ok(Sent {
            message_id: format!("<{}@host>", mail.identity),
            refused: self.refused.borrow().clone(),
        })
    }
}

impl Host {
    fn handle(&self, finding: &Finding) -> String {
        handle(finding, &settings(), self, self)
            .map_or_else(|failure| failure.message, |outcome| outcome.message)
    }
    fn sent(&self) -> usize {
        self.sent.borrow().len()
    }
}

fn later(days: u64, id: &str) -> Finding {
    let time_ms = finding().time_ms + days * 86_400_000;
    Finding { id: id.into(), time_ms, ..finding() }
}

#[test]
fn with_state_each_change_is_mailed_once() {
    let host = Host::default();
    let said = [
        host.handle(&later(0, "a")),
        host.handle(&later(0, "a")),
        host.handle(&later(1, "b")),
        host.handle(&later(7, "c")),
        host.handle(&Finding { differences: Vec::new(), ..later(8, "d") }),
        host.handle(&Finding { name: "hello-2.13".into(), ..later(9, "e") }),
    ];
    insta::assert_snapshot!(said.join("\n"));
    let threads: Vec<_> = host
        .sent
        .borrow()
        .iter()
        .map(|mail| (mail.identity.clone(), mail.in_reply_to.clone()))
        .collect();
    let first = Some("a".to_owned());
    assert_eq!(
        threads,
        [
            ("a".into(), None),
            ("c".into(), first.clone()),
            ("d".into(), first.clone()),
            ("e".into(), first)
        ]
    );
}

#[test]
fn without_state_each_finding_is_mailed() {
    let host = Host { no_state: true, ..Host::default() };
    host.handle(&later(0, "a"));
    host.handle(&later(0, "b"));
    assert_eq!(host.sent(), 2);
    assert!(host.sent.borrow()[0].text.contains("with `state = true`"));
}

#[test]
fn a_mail_that_fails_is_not_remembered() {
    let host = Host::default();
    host.mail_fails.set(true);
    assert_eq!(host.handle(&later(0, "a")), "it is Transient");
    host.mail_fails.set(false);
    host.handle(&later(0, "a"));
    assert_eq!(host.sent(), 1);
}

#[test]
fn a_full_store_makes_room() {
    let host = Host::default();
    host.handle(&Finding { name: "old-1".into(), ..later(0, "a") });
    host.room.set(Some(2));
    // The record of old-1 is older than `repeat-after`. There is no room for another thread.
    assert_eq!(
        host.handle(&Finding { name: "new-1".into(), ..later(30, "b") }),
        "mailed 1 recipient about new-1 (out); the finding could not be recorded and will be mailed again: it is Limit"
    );
    assert!(
        host.store.borrow().contains_key("output/new-1/out")
            && !host.store.borrow().contains_key("output/old-1/out")
    );
    assert_eq!(host.sent(), 2);
}

#[test]
fn a_malformed_record_counts_as_none() {
    let host = Host::default();
    host.set("output/hello-2.12/out", b"{").unwrap();
    host.handle(&finding());
    assert_eq!(host.sent(), 1);
}

proptest! {
    /// Checks that, whatever the names of files, the mail has a limited size, its subject is one
    /// line, and it contains no mark-up from the build.
    #[test]
    fn mails_about_hostile_findings_are_bounded_and_escaped(
        texts in proptest::collection::vec("(?s:.{0,40})|[<>&\"'`/a-z=]{0,40}", 8),
        kind in "content|size|mode|link-target|only-in-current|(?s:.{0,8})",
        offset in proptest::option::of(any::<u64>()),
        time_ms in any::<u64>(),
    ) {
        let finding = Finding {
            time_ms,
            name: texts[0].clone(),
            output: texts[1].clone(),
            host: texts[2].clone(),
            previous_path: texts[3].clone(),
            incomplete: Some(texts[4].clone()),
            differences: vec![difference(&texts[5], &kind, &texts[6], &texts[7], offset)],
            ..finding()
        };
        let plain = compose(&Finding { differences: vec![difference("p", &kind, "q", "r", offset)], time_ms, ..self::finding() },
            &settings(), &Reason::First, None);
        let mail = compose(&finding, &settings(), &Reason::First, None);
        prop_assert!(!mail.subject.chars().any(char::is_control) && mail.subject.len() < 499);
        for (_, value) in &mail.headers {
            prop_assert!(!value.chars().any(char::is_control) && value.len() < 499);
        }
        prop_assert!(mail.text.len() < 20_000 && mail.html.len() < 30_000);
        let names = |html: &str| {
            let mut names: Vec<String> = html.split('<').skip(1)
                .map(|tag| tag.split(|c: char| !c.is_ascii_alphanumeric() && c != '/' && c != '!').next().unwrap_or_default().to_owned())
                .collect();
            names.sort();
            names.dedup();
            names
        };
        let mut known = names(&plain.html);
        known.extend(["span", "/span", "code", "/code", "p", "/p", "mark", "/mark", "br"].map(str::to_owned));
        for name in names(&mail.html) {
            prop_assert!(known.contains(&name), "{}", name);
        }
    }
}

#[test]
fn durations_are_short() {
    assert_eq!(crate::format::duration(Duration::from_hours(7 * 24)), "7 days");
}

fn refusal_of(recipient: &str, transient: bool, reason: &str) -> Refusal {
    Refusal { recipient: recipient.into(), transient, reason: reason.into() }
}

#[test]
fn a_temporarily_refused_recipient_is_tried_again_without_a_second_mail_to_others() {
    let host = Host::default();
    host.refused.replace(vec![refusal_of("b@example.org", true, "450 greylisted")]);
    assert_eq!(
        host.handle(&later(0, "a")),
        "mailed 0 of 1 recipient about hello-2.12 (out); refused: b@example.org (450 greylisted); \
         recipients with a temporary refusal are tried again"
    );
    host.refused.replace(Vec::new());
    host.handle(&later(0, "a"));
    assert_eq!(host.sent(), 2, "the host knows who has it");
    host.handle(&later(0, "a"));
    assert_eq!(host.sent(), 2);
}

#[test]
fn a_permanently_refused_recipient_is_named() {
    let host = Host::default();
    host.refused.replace(vec![refusal_of("gone@example.org", false, "550 no such user")]);
    assert_eq!(
        host.handle(&later(0, "a")),
        "mailed 0 of 1 recipient about hello-2.12 (out); refused: gone@example.org (550 no such user)"
    );
    host.handle(&later(0, "a"));
    assert_eq!(host.sent(), 1);
}
