//! The hostile corpus at work: every guest ends as the table says, its neighbours do their work,
//! and what people read about it stays harmless.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Diff, Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::evidence::{Difference, Evidence};
use hookrun_queue::spool;
use hookrun_tests::guests::guest;
use hookrun_tests::hostile::{Hook, Row, corpus};
use hookrun_tests::lab::{Answered, Attempt, Scene, Script, answers, build_hook, conversation};

/// Fewer would be no corpus.
const LEAST: usize = 40;
/// What of a message a snapshot keeps.
const SHOWN: usize = 400;

/// A Nix with one output that has links out of the store, and hookrun without a hook: the tests
/// hand over events themselves.
fn scene() -> Scene {
    let script = "PATH=/usr/bin:/bin; mkdir -p $out/dir; echo prey > $out/file; ln -s /etc/passwd $out/escape; ln -s /etc $out/etc";
    Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("own-1")
        .signing_key("neighbour-1")
        .derivation("prey", Script::new(script))
}

/// What is there for all: services, and three neighbours that only want to work.
fn neighbours(tarpit: &std::net::TcpListener) -> String {
    format!(
        r#"
[worker]
start = "none"
[object-stores.own]
[object-stores.neighbour]
[object-stores.tarpit]
url = "s3://tarpit"
timeout = "500ms"
region = "eu-west-1"
endpoint = "http://{}"
credentials.anonymous = true
[signing-keys.own-1]
file = "@scene@/keys/own-1.secret"
[signing-keys.neighbour-1]
file = "@scene@/keys/neighbour-1.secret"
[mail.default]
to = ["ann@example.org"]
[mail.team]

[plugins.neighbour-cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = {{ bucket = "neighbour" }}
grant = {{ nix-store = "closure", object-store = ["neighbour"], signing = ["neighbour-1"] }}
[plugins.neighbour-good]
source = "{}"
hooks = ["post-build", "diff"]
grant = {{ state = true }}
[plugins.neighbour-mail]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = {{ to = ["team@example.org"], transport = "team" }}
grant = {{ mail = ["team"], state = true }}
"#,
        tarpit.local_addr().unwrap(),
        guest("good").unwrap().display(),
    )
}

/// Accepts connections, since its system does, and never says a word.
fn tarpit() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Hands over one build and one difference of `prey`, which is built.
fn hand_over(scene: &Scene) {
    let nix = scene.private_nix();
    let nix = NixDirs::new(nix.store_dir(), nix.state_dir(), nix.conf_dir());
    let drv_path = scene.drv_path("prey").display().to_string();
    let path = scene.out_path("prey").display().to_string();
    let output = Output { name: "out".to_owned(), path: path.clone() };
    let difference = Difference {
        path: "file".to_owned(),
        kind: "content".to_owned(),
        previous: "prey".to_owned(),
        current: "pray".to_owned(),
        offset: Some(2),
        details: Vec::new(),
    };
    let evidence = Evidence { differences: vec![difference], ..Evidence::default() };
    let build = HookEvent::PostBuild(PostBuild {
        drv_path: drv_path.clone(),
        outputs: vec![output.clone()],
    });
    let diff = HookEvent::Diff(Diff {
        drv_path,
        output,
        current: format!("{path}.check"),
        previous: path,
        evidence,
    });
    let dirs = Dirs { config: scene.config_path(), state: scene.state_dir() };
    for hook in [build, diff] {
        let event = Event { nix: nix.clone(), ..Event::now(hook) };
        assert_eq!(spool::put(&dirs, &event).unwrap(), spool::Place::Spool);
    }
}

/// A message as a snapshot can hold it: without places, sizes and positions that change with the
/// toolchain.
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
    // The guest's stack.
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

/// `text` with what follows each `start` up to one of `ends` replaced.
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
    assert_eq!(names.len(), rows.len(), "every guest has a name of its own");
    assert!(rows.len() >= LEAST, "{} guests", rows.len());
    for hook in [Hook::PostBuild, Hook::Diff, Hook::BuilderSelection] {
        assert!(rows.iter().filter(|row| row.hook == hook).count() >= 8, "of {}", hook.as_str());
    }
}

/// One drain for all of them, beside their neighbours.
#[test]
fn every_guest_ends_as_expected_and_its_neighbours_work() {
    let scene = scene();
    scene.build("prey").expect_success();
    std::fs::create_dir(scene.path("components")).unwrap();
    let tarpit = tarpit();
    let mut rows = corpus();
    rows.retain(|row| row.hook != Hook::BuilderSelection);
    let mut config = neighbours(&tarpit);
    for row in &rows {
        config.push_str(&row.table(&row.component(&scene.path("components"))));
    }
    scene.set_config(&config);
    hand_over(&scene);
    let drained = scene.drain();
    assert_eq!(
        drained.status.code(),
        Some(1),
        "some fail, and none ends the worker: {}",
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

    the_neighbours_worked(&scene, &attempts);
    nothing_is_outside(&scene);
    what_people_read_is_harmless(&scene);
    drop(tarpit);
}

fn the_neighbours_worked(scene: &Scene, attempts: &[Attempt]) {
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

/// No attack left anything where it must not be.
fn nothing_is_outside(scene: &Scene) {
    for path in ["/etc/cron.d/hostile", "/tmp/hookrun-hostile", "/tmp@example.org"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
    let mails = scene.mails();
    assert!(
        mails.iter().all(|mail| !mail.contains("mallory") && mail.contains("Subject: number ")),
        "{mails:#?}"
    );
    // What hostile guests may write to has only what they may write.
    let own = scene.state_dir().join("object-stores/own");
    let left: Vec<_> = std::fs::read_dir(&own)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whatever guests said: terminals get no control characters, and no text that turns its direction
/// round.
fn what_people_read_is_harmless(scene: &Scene) {
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

/// The class of an outcome as `hookrun test --format json` has it.
fn class_of(outcome: &serde_json::Value) -> &str {
    match outcome.get("class").and_then(serde_json::Value::as_str) {
        Some("limit-reached") => "limit",
        Some("failed") => "permanent",
        other => other.unwrap_or_default(),
    }
}

/// How the policy of `row` ends on the samples of `hookrun test`: the same engine, limits and
/// grants as in the hook.
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

/// Whatever the policy does, Nix has exactly one answer to each question, and hears what was wrong.
#[test]
fn a_hostile_policy_costs_its_own_answer_only() {
    let scene = scene();
    let directory = scene.path("hook");
    std::fs::create_dir_all(scene.path("components")).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let mut account = String::new();
    for row in corpus().iter().filter(|row| row.hook == Hook::BuilderSelection) {
        let table = row.table(&row.component(&scene.path("components")));
        // What a policy answers is to be seen in the answer to Nix.
        scene.set_config(&format!(
            "{}{table}\n[builders]\nearly-accept = false\n",
            neighbours(&tarpit())
        ));
        let said = tested(&scene, row);
        // The hook would compile it too, and have less time left.
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
        // What Nix shows of the policy, when JSON is undone.
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
