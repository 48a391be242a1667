//! Every secret of the configuration is a random canary; afterwards none is anywhere: not in a
//! guest's memory at any host call, not in a file that hookrun wrote or sent, not in anything a
//! command said, not in an argument or a variable of a process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Diff, Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::evidence::{Difference, Evidence};
use hookrun_tests::canary::{Canary, files_below, guest_memories};
use hookrun_tests::guests::guest;
use hookrun_tests::lab::s3::{ACCESS_KEY_ID, S3Server};
use hookrun_tests::lab::{Scene, Script, answers, build_hook, conversation};
use hookrun_tests::smtp::{MailServer, USERNAME};

/// Bytes of an Ed25519 seed that whole groups of base64 hold; the rest shares a character with the
/// public half.
const WHOLE_SEED: usize = 30;

/// A scene with servers, and the secrets that they ask for.
struct Aviary {
    scene: Scene,
    s3: S3Server,
    mail: MailServer,
    canaries: Vec<Canary>,
}

impl Aviary {
    /// None where there can be no mail server.
    fn new() -> Option<Self> {
        let (s3_secret, password) =
            (Canary::random("S3 secret key"), Canary::random("SMTP password"));
        let wrong_s3 = Canary::random("S3 secret key that is refused");
        let wrong_password = Canary::random("SMTP password that is refused");
        let token = Canary::random("access token of NIX_CONFIG");
        let no_key = Canary::random("file that is no signing key");
        let mail = MailServer::start_with(password.text())?;
        let scene = Scene::new()
            .nix_conf("run-diff-hook", "true")
            .variable("NIX_CONFIG", &format!("access-tokens = example.org={}", token.text()))
            .signing_key("lab-1")
            .derivation("alpha", Script::text("hello"))
            .derivation("beta", Script::text("hello again"))
            .derivation("random", Script::random());
        let s3 = S3Server::start_with(&scene.path("s3"), &["bucket"], s3_secret.text());
        let secrets = scene.path("secrets");
        std::fs::create_dir(&secrets).unwrap();
        let files = [
            ("s3-id", ACCESS_KEY_ID),
            ("s3-secret", s3_secret.text()),
            ("s3-wrong", wrong_s3.text()),
            ("smtp", password.text()),
            ("smtp-wrong", wrong_password.text()),
            ("no-key", no_key.text()),
        ];
        for (name, content) in files {
            std::fs::write(secrets.join(name), format!("{content}\n")).unwrap();
        }
        let key = std::fs::read_to_string(scene.path("keys/lab-1.secret")).unwrap();
        let encoded = key.trim().split_once(':').unwrap().1;
        let seed = Canary::of("signing key", decoded(encoded).get(..WHOLE_SEED).unwrap());
        assert_eq!(
            seed.found_in(key.as_bytes()),
            Some("base64 from byte 0"),
            "the test can see the key in its file"
        );
        Some(Self {
            scene,
            s3,
            mail,
            canaries: vec![s3_secret, password, wrong_s3, wrong_password, token, no_key, seed],
        })
    }

    /// The configuration: services with every secret, good plugins, and guests that fail and
    /// attack.
    fn config(&self) -> String {
        let (s3, mail) = (self.s3.endpoint(), self.mail.tls_url());
        let (ca, hostile, faulty) =
            (self.mail.ca_file(), guest("hostile").unwrap(), guest("faulty").unwrap());
        let mut config = r#"
[worker]
start = "none"
[signing-keys.lab-1]
file = "@scene@/keys/lab-1.secret"
[plugins.cache]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = { bucket = "cache" }
grant = { nix-store = "closure", object-store = ["cache"], signing = ["lab-1"] }
[plugins.refused]
source = "bundled:s3-upload"
hooks = ["post-build"]
config = { bucket = "wrong" }
retry = { attempts = 1 }
grant = { nix-store = "closure", object-store = ["wrong"], signing = ["lab-1"] }
[plugins.report]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = { to = ["ann@private.example.org"], transport = "out" }
grant = { mail = ["out"], state = true }
[plugins.unheard]
source = "bundled:email-on-nondeterminism"
hooks = ["diff"]
config = { to = ["ann@private.example.org"], transport = "wrong" }
retry = { attempts = 1 }
grant = { mail = ["wrong"], state = true }
"#
        .to_owned();
        for (name, secret) in [("cache", "s3-secret"), ("wrong", "s3-wrong")] {
            write!(
                config,
                "[object-stores.{name}]\nurl = \"s3://bucket/{name}\"\nregion = \"eu-west-1\"\nendpoint = \"{s3}\"\n\
                 credentials.access-key-id-file = \"@scene@/secrets/s3-id\"\n\
                 credentials.secret-access-key-file = \"@scene@/secrets/{secret}\"\n"
            )
            .unwrap();
        }
        for (name, secret) in [("out", "smtp"), ("wrong", "smtp-wrong")] {
            write!(
                config,
                "[mail.{name}]\ntransport = \"smtp\"\nurl = \"{mail}\"\nfrom = \"hookrun@example.org\"\nto = [\"ann@private.example.org\"]\n\
                 username = \"{USERNAME}\"\npassword-file = \"@scene@/secrets/{secret}\"\nca-file = \"{}\"\n",
                ca.display()
            )
            .unwrap();
        }
        for (name, source, act) in [
            ("signs", &hostile, r#"act = "sign", key = "lab-1", path = "{out}""#),
            ("puts", &hostile, r#"act = "put", store = "cache", key = "hostile""#),
            ("puts-wrongly", &hostile, r#"act = "put", store = "wrong", key = "hostile""#),
            ("lists", &hostile, r#"act = "list", store = "cache", prefix = """#),
            (
                "writes",
                &hostile,
                r#"act = "mail", transport = "out", recipient = "ann@private.example.org""#,
            ),
            (
                "writes-wrongly",
                &hostile,
                r#"act = "mail", transport = "wrong", recipient = "ann@private.example.org""#,
            ),
            ("looks-around", &hostile, r#"act = "environment""#),
            ("reads", &hostile, r#"act = "wasi-read", path = "@scene@/secrets/smtp""#),
            (
                "reads-beside",
                &hostile,
                r#"act = "read-file", path = "{out}", relative = "../../secrets/smtp""#,
            ),
            ("holds", &hostile, r#"act = "trap-holding""#),
            ("prints", &hostile, r#"act = "escapes""#),
            ("traps", &faulty, r#"fault = "trap""#),
            ("eats", &faulty, r#"fault = "memory""#),
        ] {
            write!(
                config,
                "[plugins.{name}]\nsource = \"{}\"\nconfig = {{ {act} }}\nhooks = [\"post-build\", \"diff\"]\n\
                 retry = {{ attempts = 1 }}\ngrant = {{ nix-store = \"outputs\", object-store = [\"cache\", \"wrong\"], \
                 signing = [\"lab-1\"], mail = [\"out\", \"wrong\"], state = true }}\n",
                source.display()
            )
            .unwrap();
        }
        config
    }

    #[track_caller]
    fn expect_none(&self, place: &str, bytes: &[u8]) {
        for canary in &self.canaries {
            if let Some(form) = canary.found_in(bytes) {
                panic!("the {} is in {place}, {form}", canary.name);
            }
        }
    }

    /// One build and one difference, as hooks would hand them over.
    fn events(&self) -> [Event; 2] {
        let nix = self.scene.private_nix();
        let nix = NixDirs::new(nix.store_dir(), nix.state_dir(), nix.conf_dir());
        let drv_path = self.scene.drv_path("alpha").display().to_string();
        let path = self.scene.out_path("alpha").display().to_string();
        let output = Output { name: "out".to_owned(), path: path.clone() };
        let difference = Difference {
            path: String::new(),
            kind: "content".to_owned(),
            previous: "a".to_owned(),
            current: "b".to_owned(),
            offset: Some(0),
            details: Vec::new(),
        };
        let evidence = Evidence { differences: vec![difference], ..Evidence::default() };
        let build = PostBuild { drv_path: drv_path.clone(), outputs: vec![output.clone()] };
        let diff =
            Diff { drv_path, output, current: format!("{path}.check"), previous: path, evidence };
        [HookEvent::PostBuild(build), HookEvent::Diff(diff)]
            .map(|hook| Event { nix: nix.clone(), ..Event::now(hook) })
    }
}

/// Base64 without padding inside.
fn decoded(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<u8> = text.trim_end_matches('=').bytes().map(value).collect();
    let mut bytes = Vec::new();
    for four in letters.chunks(4) {
        let word =
            (0..4).fold(0_u32, |word, place| word << 6 | u32::from(*four.get(place).unwrap_or(&0)));
        bytes.extend(word.to_be_bytes().get(1..four.len()).unwrap());
    }
    bytes
}

/// Looks into all guests' memories at every host call: the choke point traces each call while its
/// guest stands still.
#[derive(Clone)]
struct Lookout {
    aviary: Arc<Aviary>,
    /// Looks by plugin, and how often the plugin's own word was seen there: that shows that the
    /// looking works.
    seen: Arc<Mutex<BTreeMap<String, (usize, usize)>>>,
    control: Arc<str>,
    looks: Arc<AtomicUsize>,
}

/// The name of the plugin in an event of the choke point.
#[derive(Default)]
struct PluginField(Option<String>);

impl tracing::field::Visit for PluginField {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "plugin" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "plugin" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Lookout {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("hookrun")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut plugin = PluginField::default();
        event.record(&mut plugin);
        let Some(plugin) = plugin.0 else { return };
        let mut control = 0;
        for memory in guest_memories() {
            self.aviary.expect_none(&format!("the memory of plugin `{plugin}`"), &memory);
            control +=
                usize::from(memchr::memmem::find(&memory, self.control.as_bytes()).is_some());
        }
        self.looks.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (looks, found) = seen.entry(plugin).or_default();
        *looks += 1;
        *found += control;
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn no_guest_ever_holds_a_secret() {
    let Some(aviary) = Aviary::new() else { return };
    // Neither the hook nor its queue: the plugins alone, in this process.
    aviary.scene.set_config(&aviary.config());
    aviary.scene.build("alpha").expect_success();
    let config = Config::load(&aviary.scene.config_path()).unwrap();
    let dirs = Dirs { config: aviary.scene.config_path(), state: aviary.scene.state_dir() };
    let services = Services::new(&config, &dirs);
    let host = Host::new(&dirs, Compiler::InProcess);
    let events = aviary.events();
    // What every guest is told, and so has in its memory.
    let told: Arc<str> =
        aviary.scene.drv_path("alpha").file_name().unwrap().to_str().unwrap().into();
    let aviary = Arc::new(aviary);
    let lookout = Lookout {
        aviary: aviary.clone(),
        seen: Arc::default(),
        control: told,
        looks: Arc::default(),
    };
    // One thread, so that every event is heard here.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut classes = BTreeMap::new();
    tracing::subscriber::with_default(lookout.clone(), || {
        for (name, settings) in &config.plugins {
            let plugin = host.load(settings, &config).unwrap();
            for event in events.iter().filter(|event| plugin.hooks().contains(&event.kind())) {
                let report = runtime.block_on(plugin.run_event(&services, event, 1));
                aviary.expect_none(
                    &format!("the report of plugin `{name}`"),
                    format!("{report:?}").as_bytes(),
                );
                classes.entry(name.as_str()).or_insert_with(|| report.outcome.class().as_str());
            }
        }
    });
    // The secrets were used, and refused where they are wrong.
    assert_eq!([classes["cache"], classes["report"]], ["done", "done"], "{classes:?}");
    assert_eq!([classes["refused"], classes["unheard"]], ["refused", "refused"], "{classes:?}");
    // The looking works: each plugin was looked at, and what it may know was there.
    let seen = lookout.seen.lock().unwrap();
    for name in config.plugins.keys() {
        let (looks, found) = seen.get(name).copied().unwrap_or_default();
        assert!(
            looks > 0 && found > 0,
            "`{name}`: {looks} looks, and its event was seen {found} times"
        );
    }
    println!("{} looks into guests' memories", lookout.looks.load(Ordering::Relaxed));
}

/// What processes of this scene show of themselves, until `child` ends: arguments and variables.
fn processes_until_the_end(aviary: &Aviary, child: &mut Child) -> usize {
    let mut looks = 0;
    while child.try_wait().unwrap().is_none() {
        for pid in aviary.scene.processes() {
            for file in ["cmdline", "environ"] {
                let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
                // It may have ended.
                let Ok(bytes) = std::fs::read(&path) else { continue };
                // The token is in the test's own environment of Nix, which `hookrun drain` has from
                // here.
                aviary
                    .canaries
                    .iter()
                    .filter(|canary| !canary.name.contains("NIX_CONFIG"))
                    .for_each(|canary| {
                        assert_eq!(
                            canary.found_in(&bytes),
                            None,
                            "the {} is in {path}",
                            canary.name
                        );
                    });
                looks += 1;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    looks
}

#[test]
fn no_secret_is_left_anywhere() {
    let Some(aviary) = Aviary::new() else { return };
    let scene = &aviary.scene;
    scene.set_config(&aviary.config());
    // Through real hooks: Nix's settings, with a token in them, are in their environment.
    let said = [scene.build("alpha"), scene.build("random"), scene.check("random")];
    for ran in &said {
        aviary.expect_none("what Nix showed of the hooks", ran.account().as_bytes());
    }
    assert!(!scene.spooled().is_empty());
    aviary.expect_none(
        "the spool",
        &scene.spooled().iter().flat_map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>(),
    );
    // A file that is no event goes to `rejected`.
    std::fs::write(scene.state_dir().join("spool/garbage"), "garbage").unwrap();

    let mut drain = scene.hookrun_command(&["drain"]);
    drain.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = drain.spawn().unwrap();
    // Read while it runs: a full pipe would stop it.
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [
        std::thread::spawn(move || std::io::read_to_string(&mut streams.0).unwrap()),
        std::thread::spawn(move || std::io::read_to_string(&mut streams.1).unwrap()),
    ];
    let looks = processes_until_the_end(&aviary, &mut child);
    assert!(looks > 0, "the worker was looked at while it ran");
    for reader in readers {
        aviary.expect_none("what `hookrun drain` says", reader.join().unwrap().as_bytes());
    }
    let tasks = scene.tasks();
    for expected in [
        "alpha cache done",
        "random report done",
        "alpha refused refused",
        "random unheard refused",
    ] {
        assert!(tasks.iter().any(|task| task == expected), "{expected}: {tasks:?}");
    }

    for arguments in [
        &["status"][..],
        &["status", "--format", "json"],
        &["log", "--all", "--verbose"],
        &["log", "--all", "--format", "json"],
        &["check"],
        &["inspect", "cache"],
        &["inspect", "report", "--format", "json"],
        &["test", "cache"],
        &["test", "signs", "--format", "json"],
    ] {
        let ran = scene.hookrun(arguments);
        aviary.expect_none(
            &format!("what `hookrun {}` says", arguments.join(" ")),
            ran.account().as_bytes(),
        );
    }
    // A file that is no key at all: what is in it is not repeated.
    scene.set_config(
        &aviary.config().replace("@scene@/keys/lab-1.secret", "@scene@/secrets/no-key"),
    );
    scene.build("beta").expect_success();
    for command in ["check", "drain"] {
        let ran = scene.hookrun(&[command]).expect_failure();
        aviary.expect_none("what is said about a wrong key", ran.account().as_bytes());
    }
    // A build hook gets all of Nix's settings.
    let mut hook = build_hook(scene.dir(), "echo \"$@\" >&2; exit 1");
    let token = aviary.canaries.iter().find(|canary| canary.name.contains("NIX_CONFIG")).unwrap();
    let (bytes, _) = conversation(&format!("ssh://m?token={} - - x", token.text()), 1);
    drop(answers(&mut hook, &bytes));

    let mails = aviary.mail.delivered_now();
    assert!(!mails.is_empty());
    aviary.expect_none("a mail", mails.concat().as_bytes());
    let without = ["secrets", "keys"].map(|name| scene.path(name));
    let files = files_below(scene.dir(), &without);
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    for part in
        ["journal/journal.sqlite", "/rejected/", "/artifacts/", "/plugin-state/", "/s3/bucket/"]
    {
        assert!(names.iter().any(|name| name.contains(part)), "{part} was looked at: {names:#?}");
    }
    for path in files {
        aviary.expect_none(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
}

/// Credentials that come by the environment are in the worker's own environment, and nowhere else.
#[test]
fn secrets_of_the_environment_go_no_further() {
    let Some(aviary) = Aviary::new() else { return };
    let scene = &aviary.scene;
    let by_file = "credentials.access-key-id-file = \"@scene@/secrets/s3-id\"\n\
                   credentials.secret-access-key-file = \"@scene@/secrets/s3-secret\"\n";
    let config = aviary.config();
    assert!(config.contains(by_file), "{config}");
    scene.set_config(&config.replace(by_file, ""));
    scene.build("alpha").expect_success();
    let secret = aviary.canaries.iter().find(|canary| canary.name == "S3 secret key").unwrap();
    let mut drain = scene.hookrun_command(&["drain"]);
    drain.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", secret.text());
    let ran = hookrun_tests::lab::Ran::of(&mut drain);
    aviary.expect_none("what `hookrun drain` says", ran.account().as_bytes());
    assert!(scene.tasks().contains(&"alpha cache done".to_owned()), "{}", ran.account());
    let attempts = scene.attempts();
    let own = attempts.iter().find(|attempt| attempt.plugin == "looks-around").unwrap();
    assert_eq!(own.message, "no environment");
    for path in files_below(&scene.state_dir(), &[]) {
        aviary.expect_none(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
}
