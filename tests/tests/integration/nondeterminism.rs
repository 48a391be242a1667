//! Another result in a second build: a mail that names derivation, output and files, and Nix's
//! verdict as it would be without hookrun.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use hookrun_tests::lab::{BUILD_GROUP, Need, Ran, Scene, Script, require};
use mail_parser::MessageParser;

const CONFIG: &str = r#"
[worker]
start = "none"

[plugins.nondeterminism]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = { to = ["builds@example.org"] }
grant = { mail = ["default"], state = true }

[mail.default]
transport = "maildir"
"#;

/// A directory: one file the same in every build, one not, and a link that is not.
fn changing_tree() -> Script {
    Script::new(
        "PATH=/usr/bin:/bin; read x < /proc/sys/kernel/random/uuid; mkdir $out; echo always > $out/steady; echo made $x > \
         $out/stamp; ln -s $x $out/link",
    )
}

/// What the user of a mail program reads: subject, text and HTML.
struct Mail {
    subject: String,
    text: String,
    html: String,
    to: String,
}

fn only_mail(scene: &Scene) -> Mail {
    let mails = scene.mails();
    assert_eq!(mails.len(), 1, "one finding, one mail");
    let message = MessageParser::default().parse(&mails[0]).expect("a mail");
    Mail {
        subject: message.subject().unwrap().to_owned(),
        text: message.body_text(0).unwrap().into_owned(),
        html: message.body_html(0).unwrap().into_owned(),
        to: message.to().and_then(|to| to.first()).and_then(|to| to.address()).unwrap().to_owned(),
    }
}

#[test]
fn through_a_daemon_the_hook_is_a_build_user_and_a_mail_arrives() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().config(CONFIG).derivation("tree", changing_tree()).through_daemon();
    scene.build("tree").expect_success();
    scene.drain().expect_success();
    // As Nix 2.8 says it through a daemon with no diff-hook at all: the client ends with 1.
    scene
        .check("tree")
        .expect_failure()
        .expect_stderr("may not be deterministic")
        .expect_stderr(".check");

    let spooled = scene.spooled();
    let [event] = spooled.as_slice() else {
        panic!("one event, not {spooled:?}\n{}", scene.daemon_log())
    };
    let uid = event.metadata().unwrap().uid().to_string();
    let owner = Ran::of(Command::new("id").args(["-nu", &uid])).expect_success().stdout;
    assert!(owner.starts_with(BUILD_GROUP), "handed over by {owner}");

    scene.drain().expect_success();
    scene.expect_tasks(&["tree nondeterminism done"]);
    let mail = only_mail(&scene);
    let drv = scene.drv_path("tree").display().to_string();
    assert!(mail.subject.contains("tree"), "{}", mail.subject);
    assert_eq!(mail.to, "builds@example.org");
    for body in [&mail.text, &mail.html] {
        for part in [drv.as_str(), "out", "stamp", "link"] {
            assert!(body.contains(part), "`{part}` is not in:\n{body}");
        }
        assert!(!body.contains("steady"), "a file that does not differ is named:\n{body}");
    }
}

#[test]
fn the_verdict_is_the_same_with_and_without_hookrun() {
    if !require(Need::Root) {
        return;
    }
    let with = Scene::new().config(CONFIG).derivation("tree", changing_tree());
    let without = Scene::new()
        .nix_conf("post-build-hook", "")
        .nix_conf("run-diff-hook", "false")
        .derivation("tree", changing_tree());
    let verdicts = [&with, &without].map(|scene| {
        scene.build("tree").expect_success();
        let ran = scene.check("tree").expect_stderr("may not be deterministic");
        (ran.status.code(), ran.stdout)
    });
    assert_eq!(verdicts[0], verdicts[1]);
    with.drain().expect_success();
    assert_eq!(only_mail(&with).to, "builds@example.org");
}

#[test]
fn equal_results_are_no_finding() {
    let scene = Scene::new().config(CONFIG).derivation("alpha", Script::text("always the same"));
    scene.build("alpha").expect_success();
    scene.check("alpha").expect_success();
    scene.drain().expect_success();
    assert_eq!(scene.mails(), Vec::<String>::new());
}
