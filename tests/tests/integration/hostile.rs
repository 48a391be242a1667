//! Runs the hostile corpus: every guest ends with the outcome of the table, other plugins are not
//! affected, and the output for people contains no control characters.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use hookrun_queue::spool;
use hookrun_tests::guests::guest;
use hookrun_tests::hostile::{GuestHook, Row, corpus};
use hookrun_tests::lab::{
    Answered, Attempt, ConfigFile, PluginTable, Scene, Script, answers, build_hook, conversation,
    toml,
};
use toml::Table;

/// The least number of rows.
const LEAST: usize = 40;
/// The length of a message in a snapshot.
const SHOWN: usize = 400;

/// A Nix with one output that has links out of the store. Its hooks are not set, since the tests
/// spool the events.
fn scene() -> Scene {
    let script = "PATH=/usr/bin:/bin; mkdir -p $out/dir; echo prey > $out/file; ln -s /etc/passwd $out/escape; ln -s /etc $out/etc";
    Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("own-1")
        .signing_key("neighbour-1")
        .derivation("prey", Script::new(script))
}

/// The configuration of services, and of three plugins that must not be affected.
fn neighbours(tarpit: &std::net::TcpListener) -> ConfigFile {
    let hangs = toml! {
        url = "s3://tarpit"
        timeout = "500ms"
        region = "eu-west-1"
        endpoint = (format!("http://{}", tarpit.local_addr().unwrap()))
        credentials.anonymous = true
    };
    let cache = PluginTable::uploader("neighbour-1")
        .config(toml! { bucket = "neighbour" })
        .grant("object-store", ["neighbour"]);
    let good = PluginTable::keeper().hooks(["post-build", "diff"]);
    ConfigFile::new()
        .object_store("own", Table::new())
        .object_store("neighbour", Table::new())
        .object_store("tarpit", hangs)
        .signing_key("own-1", "keys/own-1.secret")
        .signing_key("neighbour-1", "keys/neighbour-1.secret")
        .mail("default", toml! { to = ["ann@example.org"] })
        .mail("team", Table::new())
        .plugin("neighbour-cache", cache)
        .plugin("neighbour-good", good)
        .plugin("neighbour-mail", PluginTable::mailer("team", "team@example.org"))
}

/// A server that accepts connections and never answers.
fn tarpit() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Spools one build and one difference of `prey`, which is built.
fn hand_over(scene: &Scene) {
    for event in [scene.build_event("prey"), scene.diff_event("prey", "file")] {
        assert_eq!(spool::put(&scene.dirs(), &event).unwrap(), spool::SpoolPlace::Spool);
    }
}

/// Returns a message without paths, sizes and positions, which change with the toolchain.
fn steady(scene: &Scene, message: &str) -> String {
    let mut text = message.to_owned();
    let components = scene.path("components").display().to_string();
    let shared = guest("hostile").unwrap().display().to_string();
    let (drv, out) = (
        scene.drv_path("prey").display().to_string(),
        scene.out_path("prey").display().to_string(),
    );
    for (place, name) in
        [(&*shared, "@guest@"), (&*components, "@components@"), (&*drv, "@drv@"), (&*out, "@out@")]
    {
        text = text.replace(place, name);
    }
    text = text.replace(&scene.dir().display().to_string(), "@scene@");
    // Leave out the stack of the guest.
    if let Some((before, _)) = text.split_once(" (in ") {
        text = before.to_owned();
    }
    text = between(&text, ", wanted ", &[')']);
    text = between(&text, "hookrun.toml:", &[':']);
    text = between(&text, "http://127.0.0.1:", &[')']);
    text = between(&text, "offset 0x", &[')', ' ', ',']);
    if text.len() > SHOWN {
        let kept: String = text.chars().take(SHOWN).collect();
        text = format!("{kept}... and more, {} bytes", text.len());
    }
    text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

/// Returns `text` with everything between each `start` and one of `ends` replaced.
fn between(text: &str, start: &str, ends: &[char]) -> String {
    let mut parts = text.split(start);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find(ends).map_or("", |end| part.get(end..).unwrap_or_default());
        write!(kept, "{start}@{rest}").unwrap();
    }
    kept
}

fn attempts_of<'a>(attempts: &'a [Attempt], plugin: &str) -> Vec<&'a Attempt> {
    attempts.iter().filter(|attempt| attempt.plugin == plugin).collect()
}

#[test]
fn every_row_of_the_corpus_has_its_own_name() {
    let rows = corpus();
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "names are unique");
    assert!(rows.len() >= LEAST, "{} guests", rows.len());
    for hook in [GuestHook::PostBuild, GuestHook::Diff, GuestHook::BuilderSelection] {
        assert!(rows.iter().filter(|row| row.hook == hook).count() >= 8, "of {}", hook.as_str());
    }
}

#[test]
fn every_guest_ends_as_expected_and_does_not_affect_other_plugins() {
    let scene = scene();
    scene.build("prey").expect_success();
    std::fs::create_dir(scene.path("components")).unwrap();
    let tarpit = tarpit();
    let mut rows = corpus();
    rows.retain(|row| row.hook != GuestHook::BuilderSelection);
    let mut config = neighbours(&tarpit);
    for row in &rows {
        let table = row.table(&row.component(&scene.path("components")));
        config = config.plugin(&row.name, table);
    }
    scene.set_config(&config);
    hand_over(&scene);
    let drained = scene.drain();
    assert_eq!(
        drained.status.code(),
        Some(1),
        "some tasks fail, and the worker continues: {}",
        drained.account()
    );

    let attempts = scene.attempts();
    let mut account = String::new();
    let mut wrong = String::new();
    for row in &rows {
        let own = attempts_of(&attempts, &row.name);
        let [attempt] = own.as_slice() else {
            writeln!(wrong, "{}: {} attempts", row.name, own.len()).unwrap();
            continue;
        };
        let said = format!("{}\n{}", attempt.message, attempt.log.join("\n"));
        if attempt.class != row.class || !said.contains(row.says) || said.contains("ESCAPED") {
            let said = steady(&scene, &said);
            writeln!(
                wrong,
                "{}: expected {} `{}`: {} {said}",
                row.name, row.class, row.says, attempt.class
            )
            .unwrap();
        }
        writeln!(
            account,
            "{} ({}): {}\n  {}",
            row.name,
            row.hook.as_str(),
            attempt.class,
            steady(&scene, &attempt.message)
        )
        .unwrap();
    }
    assert!(wrong.is_empty(), "{wrong}");
    insta::assert_snapshot!("corpus", account);

    expect_neighbours_done(&scene, &attempts);
    expect_nothing_outside(&scene);
    expect_harmless_output(&scene);
    drop(tarpit);
}

fn expect_neighbours_done(scene: &Scene, attempts: &[Attempt]) {
    for (plugin, runs) in [("neighbour-cache", 1), ("neighbour-good", 2), ("neighbour-mail", 1)] {
        let own = attempts_of(attempts, plugin);
        assert_eq!(own.len(), runs, "{plugin}: {own:#?}");
        assert!(own.iter().all(|attempt| attempt.class == "done"), "{plugin}: {own:#?}");
    }
    let out = scene.out_path("prey");
    let hash = out.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    let narinfo = scene.state_dir().join(format!("object-stores/neighbour/{hash}.narinfo"));
    let narinfo = std::fs::read_to_string(&narinfo)
        .unwrap_or_else(|error| panic!("{}: {error}", narinfo.display()));
    assert!(narinfo.contains("Sig: neighbour-1:"), "{narinfo}");
    assert_eq!(scene.mails_of("team").len(), 1);
}

/// Fails if an attack has left something outside of what the guest may write.
fn expect_nothing_outside(scene: &Scene) {
    for path in ["/etc/cron.d/hostile", "/tmp/hookrun-hostile", "/tmp@example.org"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    let mails = scene.mails();
    assert!(
        mails.iter().all(|mail| !mail.contains("mallory") && mail.contains("Subject: number ")),
        "{mails:#?}"
    );
    // The store of the hostile guests is empty, since each of their writes is refused.
    let own = scene.state_dir().join("object-stores/own");
    let left: Vec<_> = std::fs::read_dir(&own)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Fails if the output of commands has control characters, or characters that change the direction
/// of text.
fn expect_harmless_output(scene: &Scene) {
    for arguments in [&["log", "--all", "--verbose"][..], &["status"], &["check"]] {
        let ran = scene.hookrun(arguments);
        let text = format!("{}{}", ran.stdout, ran.stderr);
        let odd = text.chars().find(|c| {
            (c.is_control() && *c != '\n')
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        });
        assert_eq!(odd, None, "in `hookrun {}`", arguments.join(" "));
    }
}

/// Returns the class of an outcome in the output of `hookrun test --format json`.
fn class_of(outcome: &serde_json::Value) -> &str {
    match outcome.get("class").and_then(serde_json::Value::as_str) {
        Some("limit-reached") => "limit",
        Some("failed") => "permanent",
        other => other.unwrap_or_default(),
    }
}

/// Runs the policy of `row` on the samples of `hookrun test`, with the engine, limits and grants of
/// the hook.
fn tested(scene: &Scene, row: &Row) -> String {
    let ran = scene.hookrun(&["test", &row.name, "--format", "json"]);
    let report: serde_json::Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.account()));
    let runs = report.get("runs").and_then(serde_json::Value::as_array).unwrap();
    let outcomes =
        runs.iter().filter(|run| run.get("hook").is_some_and(|hook| hook == "builder-selection"));
    let mut said = String::new();
    for outcome in outcomes.map(|run| run.pointer("/report/outcome").unwrap()) {
        let text = outcome.to_string();
        assert!(class_of(outcome) == row.class && text.contains(row.says), "{}: {text}", row.name);
        let message =
            outcome.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
        said = format!("{}: {}", class_of(outcome), steady(scene, message));
    }
    said
}

#[test]
fn nix_gets_one_answer_to_each_question_whatever_the_policy_does() {
    let scene = scene();
    let directory = scene.path("hook");
    std::fs::create_dir_all(scene.path("components")).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let mut account = String::new();
    for row in corpus().iter().filter(|row| row.hook == GuestHook::BuilderSelection) {
        let table = row.table(&row.component(&scene.path("components")));
        // With `early-accept` the answer to Nix would not depend on the policy.
        scene.set_config(
            &neighbours(&tarpit()).plugin(&row.name, table).builders("early-accept", false),
        );
        let said = tested(&scene, row);
        // Otherwise the hook compiles it, and the policy has less time.
        scene.hookrun(&["compile", &row.name]);
        let mut hook = build_hook(&directory, "exit 1");
        hook.env("HOOKRUN_CONFIG", scene.config_path()).env("HOOKRUN_STATE_DIR", scene.state_dir());
        let (bytes, _) = conversation("ssh://m - - 1", 2);
        let Answered { directives, messages, code } = answers(&mut hook, &bytes);
        assert_eq!(
            (directives.len(), code),
            (2, Some(0)),
            "{}: {directives:?} {messages:?}",
            row.name
        );
        // The messages about the policy that Nix shows.
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("@nix ")?).ok())
            .collect();
        let messages = messages.iter().filter_map(|message| message.get("msg")?.as_str());
        let about: Vec<&str> = messages.filter(|message| message.contains("policy")).collect();
        assert!(
            about.iter().all(|message| !message.contains(char::is_control)),
            "{}: {about:?}",
            row.name
        );
        let heard: Vec<String> = about.iter().map(|message| steady(&scene, message)).collect();
        writeln!(
            account,
            "{}: {}\n  {said}\n  {}",
            row.name,
            directives.join(", "),
            heard.join("\n  ")
        )
        .unwrap();
    }
    insta::assert_snapshot!("selections", account);
}
