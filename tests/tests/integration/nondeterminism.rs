//! A second build with another result: a mail names derivation, output and files, and Nix exits as
//! it does without hookrun.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use hookrun_queue::lock;
use hookrun_tests::lab::{
    BUILD_GROUP, ConfigFile, Need, PluginTable, Ran, Scene, Script, require, toml, wait_for,
};
use mail_parser::MessageParser;

/// The configuration with the plugin `nondeterminism`, which writes into a maildir.
fn config() -> ConfigFile {
    ConfigFile::new()
        .plugin("nondeterminism", PluginTable::mailer("default", "builds@example.org"))
        .mail("default", toml! { transport = "maildir" })
}

/// A directory with a file that is the same in every build, and a file and a link that differ.
fn changing_tree() -> Script {
    Script::new(
        "PATH=/usr/bin:/bin; read x < /proc/sys/kernel/random/uuid; mkdir $out; echo always > $out/steady; echo made $x > \
         $out/stamp; ln -s $x $out/link",
    )
}

/// The parts of a message that a mail program shows.
struct Mail {
    subject: String,
    text: String,
    html: String,
    to: String,
}

fn only_mail(scene: &Scene) -> Mail {
    let mails = scene.mails();
    assert_eq!(mails.len(), 1, "one finding has one mail");
    let message = MessageParser::default().parse(&mails[0]).expect("a mail");
    Mail {
        subject: message.subject().unwrap().to_owned(),
        text: message.body_text(0).unwrap().into_owned(),
        html: message.body_html(0).unwrap().into_owned(),
        to: message.to().and_then(|to| to.first()).and_then(|to| to.address()).unwrap().to_owned(),
    }
}

#[test]
fn a_difference_that_a_build_user_reports_through_a_daemon_is_mailed() {
    if !require(Need::Root) {
        return;
    }
    let scene = Scene::new().config(&config()).derivation("tree", changing_tree()).through_daemon();
    scene.build("tree").expect_success();
    scene.drain().expect_success();
    // Nix 2.8 exits with 1 through a daemon, with or without a diff-hook.
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
fn nix_exits_the_same_with_and_without_hookrun() {
    if !require(Need::Root) {
        return;
    }
    let with = Scene::new().config(&config()).derivation("tree", changing_tree());
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
fn equal_results_are_not_mailed() {
    let scene = Scene::new().config(&config()).derivation("alpha", Script::text("always the same"));
    scene.build("alpha").expect_success();
    scene.check("alpha").expect_success();
    scene.drain().expect_success();
    assert_eq!(scene.mails(), Vec::<String>::new());
}

/// A realistic package: many files with the same defect and a few with others. The first build
/// leaves a file in `memory`, which identifies the second build.
fn realistic_package(memory: &Path) -> Script {
    let memory = memory.display();
    Script::new(format!(
        r#"PATH=/usr/bin:/bin
if [ -e {memory}/built ]; then n=2; else n=1; : > {memory}/built; fi
mkdir -p $out/bin $out/extra $out/include $out/lib $out/share/doc $out/share/java $out/share/man
for i in 01 02 03 04 05 06 07 08 09 10 11 12; do
  printf 'header line\npid 5579%s\n' $n > $out/extra/gen$i.txt; done
for i in 1 2 3; do echo steady $i > $out/extra/steady$i.txt; done
printf '#ifndef VERSION_H\n#define BUILD_DATE "Nov 27 2026 15:55:4%s"\n#endif\n' $n > $out/include/version.h
printf '\177ELF\002\001\001\000\000\000\000\000\000\000\000\000' > $out/bin/prog
printf '\004\000\000\000\024\000\000\000\003\000\000\000GNU\000\37%s\122\007' $n >> $out/bin/prog
printf 'some more text of a program\000built 2026-11-27 15:5%s:02\000the end\000' $n >> $out/bin/prog
printf '\037\213\010\000\37%s\247\011\153\000\003same' $n > $out/share/man/prog.1.gz
printf 'PK\003\004\024\000\000\000\010\000\10%s\133\173\133name' $n > $out/share/java/app.jar
if [ $n = 1 ]; then printf 'alpha\nbeta\ngamma\ndelta\n'; else printf 'gamma\nalpha\ndelta\nbeta\n'; fi > $out/lib/symbols.txt
printf '{{\n  "builddir": "/tmp/nix-build-real.drv-%s/src"\n}}\n' $n > $out/lib/config.json
printf 'the quick %s fox\n' $( [ $n = 1 ] && echo brown || echo red ) > $out/share/doc/fox.txt
ln -s libreal.so.$n $out/lib/libreal.so
echo x > $out/share/doc/only-in-$n"#
    ))
}

#[test]
fn a_mail_about_many_files_groups_them_by_cause_and_names_them_all() {
    let memory = tempfile::tempdir().unwrap();
    // A build user may run the build.
    std::fs::set_permissions(memory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let script = realistic_package(memory.path());
    let scene = Scene::new().config(&config()).derivation("real-1.2", script);
    scene.build("real-1.2").expect_success();
    scene.check("real-1.2").expect_exit(104);
    scene.drain().expect_success();
    let mail = only_mail(&scene);
    for label in [">previous<", ">current<", "<mark>"] {
        assert!(mail.html.contains(label), "`{label}` is not in: {}", mail.html);
    }
    // The facts about the machine and the test run differ each time.
    let facts = ["  Machine ", "  Nix ", "  Built by ", "  Command ", "  Time "];
    for fact in facts {
        assert!(mail.text.contains(fact), "`{fact}` is not in: {}", mail.text);
    }
    assert!(mail.text.contains(" --check"), "the command is not in: {}", mail.text);
    let text: Vec<&str> =
        mail.text.lines().filter(|line| !facts.iter().any(|fact| line.starts_with(fact))).collect();
    let text = text
        .join("\n")
        .replace(&scene.drv_path("real-1.2").display().to_string(), "DRV")
        .replace(&scene.out_path("real-1.2").display().to_string(), "OUT");
    let text =
        text.replace(scene.out_path("real-1.2").file_name().unwrap().to_str().unwrap(), "NAME");
    insta::assert_snapshot!(text);
}

#[test]
fn a_finding_is_mailed_without_a_service_after_the_worker_has_left() {
    if !require(Need::Root) {
        return;
    }
    let config = config().worker("start", "spawn").worker("idle-exit", "1s");
    let scene = Scene::new().config(&config).derivation("tree", changing_tree()).through_daemon();
    scene.build("tree").expect_success();
    let held = |name: &str| lock::is_held(&scene.state_dir().join(name));
    // Twice, since each worker leaves another process that waits.
    for number in 1..=2 {
        wait_for("the worker has left", || held("waiter.lock") && !held("worker.lock"));
        scene.hookrun(&["status"]).expect_success().expect_stdout("starts it for build users");
        scene.check("tree").expect_failure().expect_stderr("may not be deterministic");
        wait_for("the finding is handled", || scene.attempts().len() == number);
    }
    // The second finding is the same.
    assert_eq!(only_mail(&scene).to, "builds@example.org");
}
