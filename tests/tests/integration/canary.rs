//! Every secret of the configuration is random text. The tests search for these texts in the memory
//! of guests at each host call, in files that hookrun wrote or sent, in the output of commands, and
//! in the arguments and variables of processes.

mod memory_search;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host};
use hookrun_tests::canary::{Canary, files_below};
use hookrun_tests::lab::s3::{ACCESS_KEY_ID, S3Server};
use hookrun_tests::lab::{
    ConfigFile, PluginTable, Ran, Scene, Script, answers, build_hook, conversation, toml,
};
use hookrun_tests::smtp::MailServer;
use memory_search::MemorySearch;

/// The bytes of an Ed25519 seed that whole groups of base64 contain. The next byte shares a
/// character with the public half.
const WHOLE_SEED: usize = 30;
/// The recipient of all mail. The server demands a login for this domain.
const RECIPIENT: &str = "ann@private.example.org";

/// Returns a certificate of a client and its private key.
fn client_certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    (certificate.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A scene with servers and the secrets that they ask for.
struct SecretScene {
    scene: Scene,
    s3: S3Server,
    mail: MailServer,
    canaries: Vec<Canary>,
}

impl SecretScene {
    /// Returns `None` if the test is skipped.
    fn new() -> Option<Self> {
        let (s3_secret, password) =
            (Canary::random("S3 secret key"), Canary::random("SMTP password"));
        let wrong_s3 = Canary::random("S3 secret key that is refused");
        let wrong_password = Canary::random("SMTP password that is refused");
        let token = Canary::random("access token of NIX_CONFIG");
        let no_key = Canary::random("file that is not a signing key");
        let session = Canary::random("S3 session token");
        let (certificate, client_key) = client_certificate();
        let of_client = Canary::of("client key", client_key.lines().nth(1).unwrap());
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
            ("s3-session", session.text()),
            ("client.pem", &certificate),
            ("client.key", &client_key),
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
            "the search finds the key in its file"
        );
        Some(Self {
            scene,
            s3,
            mail,
            canaries: vec![
                s3_secret,
                password,
                wrong_s3,
                wrong_password,
                token,
                no_key,
                seed,
                session,
                of_client,
            ],
        })
    }

    /// Returns a configuration of services with every secret, good plugins, and guests that fail or
    /// attack.
    fn config(&self) -> ConfigFile {
        let mut file = ConfigFile::new().signing_key("lab-1", "keys/lab-1.secret");
        for (name, secret) in [("cache", "s3-secret"), ("wrong", "s3-wrong")] {
            let store = toml! {
                url = (format!("s3://bucket/{name}"))
                region = "eu-west-1"
                endpoint = (self.s3.endpoint())
                credentials.access-key-id-file = "secrets/s3-id"
                credentials.secret-access-key-file = (format!("secrets/{secret}"))
                credentials.session-token-file = "secrets/s3-session"
                client-certificate-file = "secrets/client.pem"
                client-key-file = "secrets/client.key"
            };
            file = file.object_store(name, store);
        }
        for (name, secret) in [("out", "smtp"), ("wrong", "smtp-wrong")] {
            let mut transport = self.mail.transport(&Path::new("secrets").join(secret));
            transport.extend(toml! { to = [RECIPIENT] });
            file = file.mail(name, transport);
        }
        let refused = PluginTable::uploader("lab-1")
            .config(toml! { bucket = "wrong" })
            .retry("attempts", 1)
            .grant("object-store", ["wrong"]);
        file = file
            .plugin("cache", PluginTable::uploader("lab-1"))
            .plugin("refused", refused)
            .plugin("report", PluginTable::mailer("out", RECIPIENT))
            .plugin("unheard", PluginTable::mailer("wrong", RECIPIENT).retry("attempts", 1));
        for (name, act) in [
            ("signs", toml! { act = "sign" key = "lab-1" path = "{out}" }),
            ("puts", toml! { act = "put" store = "cache" key = "hostile" }),
            ("puts-wrongly", toml! { act = "put" store = "wrong" key = "hostile" }),
            ("lists", toml! { act = "list" store = "cache" prefix = "" }),
            ("writes", toml! { act = "mail" transport = "out" recipient = RECIPIENT }),
            ("writes-wrongly", toml! { act = "mail" transport = "wrong" recipient = RECIPIENT }),
            ("looks-around", toml! { act = "environment" }),
            ("reads", toml! { act = "wasi-read" path = "@scene@/secrets/smtp" }),
            (
                "reads-beside",
                toml! { act = "read-file" path = "{out}" relative = "../../secrets/smtp" },
            ),
            ("holds", toml! { act = "trap-holding" }),
            ("prints", toml! { act = "escapes" }),
        ] {
            file = file.plugin(name, all_granted(PluginTable::guest("hostile").config(act)));
        }
        for (name, fault) in [("traps", "trap"), ("eats", "memory")] {
            let table = PluginTable::guest("faulty").config(toml! { fault = fault });
            file = file.plugin(name, all_granted(table));
        }
        file
    }

    #[track_caller]
    fn expect_none(&self, place: &str, bytes: &[u8]) {
        for canary in &self.canaries {
            if let Some(form) = canary.found_in(bytes) {
                panic!("the {} is in {place}, {form}", canary.name);
            }
        }
    }
}

/// Serves both event hooks with every grant.
fn all_granted(table: PluginTable) -> PluginTable {
    table
        .hooks(["post-build", "diff"])
        .retry("attempts", 1)
        .grant("nix-store", "outputs")
        .grant("object-store", ["cache", "wrong"])
        .grant("signing", ["lab-1"])
        .grant("mail", ["out", "wrong"])
        .grant("state", true)
}

/// Decodes base64.
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

#[test]
fn no_guest_has_a_secret_in_its_memory_at_a_host_call() {
    let Some(secrets_scene) = SecretScene::new() else { return };
    // Only the plugins, in this process, without hook and queue.
    secrets_scene.scene.set_config(&secrets_scene.config());
    secrets_scene.scene.build("alpha").expect_success();
    let config = Config::load(&secrets_scene.scene.config_path()).unwrap();
    let dirs = secrets_scene.scene.dirs();
    let services = Services::new(&config, &dirs);
    let host = Host::new(&dirs, Compiler::InProcess);
    let events =
        [secrets_scene.scene.build_event("alpha"), secrets_scene.scene.diff_event("alpha", "")];
    let told: Arc<str> =
        secrets_scene.scene.drv_path("alpha").file_name().unwrap().to_str().unwrap().into();
    let secrets_scene = Arc::new(secrets_scene);
    let search =
        MemorySearch { secrets_scene: secrets_scene.clone(), seen: Arc::default(), control: told };
    // The subscriber receives events of this thread only.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut classes = BTreeMap::new();
    tracing::subscriber::with_default(search.clone(), || {
        for (name, settings) in &config.plugins {
            let plugin = host.load(settings, &config).unwrap();
            for event in events.iter().filter(|event| plugin.hooks().contains(&event.kind())) {
                let report = runtime.block_on(plugin.run_event(&services, event, 1));
                secrets_scene.expect_none(
                    &format!("the report of plugin `{name}`"),
                    format!("{report:?}").as_bytes(),
                );
                classes.entry(name.as_str()).or_insert_with(|| report.outcome.class().as_str());
            }
        }
    });
    // The right secrets were accepted, and the wrong ones refused.
    assert_eq!([classes["cache"], classes["report"]], ["done", "done"], "{classes:?}");
    assert_eq!([classes["refused"], classes["unheard"]], ["refused", "refused"], "{classes:?}");
    // The search works: it ran for each plugin and found the control text.
    let seen = search.seen.lock().unwrap();
    for name in config.plugins.keys() {
        let (looks, found) = seen.get(name).copied().unwrap_or_default();
        assert!(
            looks > 0 && found > 0,
            "`{name}`: {looks} searches, which found its event {found} times"
        );
    }
}

/// Searches the arguments and variables of the processes of this scene until `child` ends. Returns
/// the number of searches.
fn processes_until_the_end(secrets_scene: &SecretScene, child: &mut Child) -> usize {
    let mut looks = 0;
    while child.try_wait().unwrap().is_none() {
        for pid in secrets_scene.scene.processes() {
            for file in ["cmdline", "environ"] {
                let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
                // It may have ended.
                let Ok(bytes) = std::fs::read(&path) else { continue };
                // The test itself sets the token in the environment.
                secrets_scene
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
fn no_secret_is_in_files_output_arguments_or_variables() {
    let Some(secrets_scene) = SecretScene::new() else { return };
    let scene = &secrets_scene.scene;
    scene.set_config(&secrets_scene.config());
    // The environment of the hooks has the settings of Nix with the token.
    let said = [scene.build("alpha"), scene.build("random"), scene.check("random")];
    for ran in &said {
        secrets_scene.expect_none("the output of Nix", ran.account().as_bytes());
    }
    assert!(!scene.spooled().is_empty());
    secrets_scene.expect_none(
        "the spool",
        &scene.spooled().iter().flat_map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>(),
    );
    // A file that is not an event is moved to `rejected`.
    std::fs::write(scene.state_dir().join("spool/garbage"), "garbage").unwrap();

    let mut drain = scene.hookrun_command(&["drain"]);
    drain.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = drain.spawn().unwrap();
    // A full pipe would block the worker.
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [
        std::thread::spawn(move || std::io::read_to_string(&mut streams.0).unwrap()),
        std::thread::spawn(move || std::io::read_to_string(&mut streams.1).unwrap()),
    ];
    let looks = processes_until_the_end(&secrets_scene, &mut child);
    assert!(looks > 0, "the worker was searched while it ran");
    for reader in readers {
        secrets_scene
            .expect_none("the output of `hookrun drain`", reader.join().unwrap().as_bytes());
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
        secrets_scene.expect_none(
            &format!("the output of `hookrun {}`", arguments.join(" ")),
            ran.account().as_bytes(),
        );
    }
    // The message about a file that is not a key does not repeat its contents.
    scene.set_config(&secrets_scene.config().signing_key("lab-1", "secrets/no-key"));
    scene.build("beta").expect_success();
    for command in ["check", "drain"] {
        let ran = scene.hookrun(&[command]).expect_failure();
        secrets_scene.expect_none("the message about a wrong key", ran.account().as_bytes());
    }
    // A build hook gets all settings of Nix.
    let mut hook = build_hook(scene.dir(), "echo \"$@\" >&2; exit 1");
    let token =
        secrets_scene.canaries.iter().find(|canary| canary.name.contains("NIX_CONFIG")).unwrap();
    let (bytes, _) = conversation(&format!("ssh://m?token={} - - x", token.text()), 1);
    drop(answers(&mut hook, &bytes));

    let mails = secrets_scene.mail.delivered_now();
    assert!(!mails.is_empty());
    secrets_scene.expect_none("a mail", mails.concat().as_bytes());
    let without = ["secrets", "keys"].map(|name| scene.path(name));
    let files = files_below(scene.dir(), &without);
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    for part in
        ["journal/journal.sqlite", "/rejected/", "/artifacts/", "/plugin-state/", "/s3/bucket/"]
    {
        assert!(names.iter().any(|name| name.contains(part)), "{part} was searched: {names:#?}");
    }
    for path in files {
        secrets_scene.expect_none(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
}

#[test]
fn secrets_of_the_environment_stay_in_the_environment_of_the_worker() {
    let Some(secrets_scene) = SecretScene::new() else { return };
    let scene = &secrets_scene.scene;
    let without_files = toml! {
        url = "s3://bucket/cache"
        region = "eu-west-1"
        endpoint = (secrets_scene.s3.endpoint())
    };
    scene.set_config(&secrets_scene.config().object_store("cache", without_files));
    scene.build("alpha").expect_success();
    let secret =
        secrets_scene.canaries.iter().find(|canary| canary.name == "S3 secret key").unwrap();
    let mut drain = scene.hookrun_command(&["drain"]);
    drain.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", secret.text());
    let ran = Ran::of(&mut drain);
    secrets_scene.expect_none("the output of `hookrun drain`", ran.account().as_bytes());
    assert!(scene.tasks().contains(&"alpha cache done".to_owned()), "{}", ran.account());
    let attempts = scene.attempts();
    let own = attempts.iter().find(|attempt| attempt.plugin == "looks-around").unwrap();
    assert_eq!(own.message, "no environment");
    for path in files_below(&scene.state_dir(), &[]) {
        secrets_scene.expect_none(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
}
