//! `hookrun cache` on caches that a real Nix made, in a directory and on an S3 server: damage of
//! every kind is found and repaired, garbage is collected in two phases, and pins hold, while a
//! second installation uploads.

mod figures;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hookrun_nix::narinfo::key_of;
use hookrun_tests::lab::s3::{Fault, S3Server, SECRET_ACCESS_KEY};
use hookrun_tests::lab::{ConfigFile, PluginTable, Ran, Scene, Script, toml};
use serde_json::Value;

/// The key of the damaged NARs' objects, with their bytes.
type Objects = Vec<(PathBuf, Vec<u8>)>;

/// A cache that Nix made, and the scene that looks after it.
struct Cared {
    scene: Scene,
    /// The directory with the objects of the cache.
    objects: PathBuf,
    /// Keeps the server running.
    server: Option<S3Server>,
}

/// Returns the scene: two chains, and keys.
fn scene() -> Scene {
    Scene::new()
        .nix_conf("post-build-hook", "")
        .signing_key("lab-1")
        .signing_key("lab-2")
        .signing_key("other-1")
        .derivation("alpha", Script::text("hello"))
        .derivation("beta", Script::naming(["alpha"]))
        .derivation("gamma", Script::naming(["beta"]))
        .derivation("eta", Script::text("other"))
        .derivation("zeta", Script::naming(["eta"]))
        .derivation("delta", Script::naming(["alpha", "eta"]))
}

impl Cared {
    fn in_a_directory() -> Self {
        let scene = scene();
        let objects = scene.path("cache");
        let store = toml! { url = (format!("file://{}", objects.display())) };
        Self { scene, objects, server: None }.made(store)
    }

    fn on_a_server() -> Self {
        Self::on(|scene| S3Server::start(&scene.path("s3"), &["bucket", "other"]))
    }

    fn on(server: impl FnOnce(&Scene) -> S3Server) -> Self {
        let scene = scene();
        let server = server(&scene);
        let objects = server.bucket("bucket").join("prefix");
        let store = server.object_store("s3://bucket/prefix", scene.dir(), SECRET_ACCESS_KEY);
        Self { scene, objects, server: Some(server) }.made(store)
    }

    /// Builds everything, and has Nix copy it to the cache.
    fn made(self, store: toml::Table) -> Self {
        let config = ConfigFile::new()
            .plugin("cache", PluginTable::uploader("lab-1"))
            .signing_key("lab-1", "keys/lab-1.secret")
            .signing_key("lab-2", "keys/lab-2.secret")
            .object_store("cache", store);
        self.scene.set_config(&config);
        let mut paths = Vec::new();
        for name in ["gamma", "delta", "zeta"] {
            paths.push(self.scene.build(name).expect_success().path().display().to_string());
        }
        let url = format!(
            "file://{}?secret-key={}&write-nar-listing=1",
            self.objects.display(),
            self.scene.path("keys/lab-1.secret").display()
        );
        std::fs::create_dir_all(&self.objects).unwrap();
        let mut arguments =
            vec!["--extra-experimental-features", "nix-command", "copy", "--to", &url];
        arguments.extend(paths.iter().map(String::as_str));
        self.scene.nix("nix", &arguments).expect_success();
        self
    }

    fn path(&self, name: &str) -> String {
        self.scene.out_path(name).display().to_string()
    }

    fn narinfo_file(&self, name: &str) -> PathBuf {
        self.objects.join(key_of(&self.path(name)))
    }

    fn narinfo(&self, name: &str) -> String {
        std::fs::read_to_string(self.narinfo_file(name)).unwrap()
    }

    fn field(&self, name: &str, field: &str) -> String {
        let narinfo = self.narinfo(name);
        let line = narinfo.lines().find_map(|line| line.strip_prefix(&format!("{field}: ")));
        line.unwrap().to_owned()
    }

    fn nar_file(&self, name: &str) -> PathBuf {
        self.objects.join(self.field(name, "URL"))
    }

    fn edit_narinfo(&self, name: &str, from: &str, to: &str) {
        let text = self.narinfo(name);
        assert!(text.contains(from), "{text}");
        std::fs::write(self.narinfo_file(name), text.replace(from, to)).unwrap();
    }

    fn cache(&self, arguments: &[&str]) -> Ran {
        self.scene.hookrun(&[&["cache"], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.cache(&[arguments, &["--format", "json"]].concat());
        serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", ran.account()))
    }

    /// Damages the cache in every way; returns the objects that must not get other bytes.
    fn damage(&self) -> Objects {
        std::fs::remove_file(self.nar_file("alpha")).unwrap();
        let mut bytes = std::fs::read(self.nar_file("beta")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(self.nar_file("beta"), bytes).unwrap();
        let gamma = std::fs::read(self.nar_file("gamma")).unwrap();
        std::fs::write(self.nar_file("gamma"), &gamma[..gamma.len() - 5]).unwrap();
        self.edit_narinfo("delta", "Sig: lab-1:", "Sig: other-1:");
        let orphan = self.objects.join("nar/orphan.nar.xz");
        std::fs::write(&orphan, "nobody names this").unwrap();
        // A reference that is absent: zeta refers to eta.
        std::fs::remove_file(self.narinfo_file("eta")).unwrap();
        let kept = [self.nar_file("beta"), self.nar_file("gamma"), orphan];
        kept.map(|file| (file.clone(), std::fs::read(file).unwrap())).to_vec()
    }

    /// Sets the time of all objects, and of the list of condemned objects, back.
    fn age(&self, days: u64) {
        let by = Duration::from_hours(24 * days);
        let mut directories = vec![self.objects.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let modified = path.metadata().unwrap().modified().unwrap();
                let file = std::fs::File::options().append(true).open(&path).unwrap();
                file.set_modified(modified - by).unwrap();
            }
        }
        let list = self.objects.join("hookrun/gc/condemned");
        let Ok(text) = std::fs::read_to_string(&list) else { return };
        let moved = text.lines().map(|line| match line.strip_prefix("at ") {
            Some(at) => format!("at {}\n", at.parse::<u64>().unwrap() - by.as_secs()),
            None => format!("{line}\n"),
        });
        std::fs::write(&list, moved.collect::<String>()).unwrap();
    }

    /// Copies a path to an empty store that trusts these keys only.
    fn substitute(&self, name: &str, keys: &[&str]) {
        let path = self.scene.out_path(name);
        let second = self.scene.second_store();
        let url = format!("file://{}", self.objects.display());
        let keys: Vec<&str> = keys.iter().map(|key| self.scene.public_key(key)).collect();
        second.copy_from(&path, &url, &keys).expect_success();
        assert_eq!(std::fs::read(second.locate(&path)).unwrap(), std::fs::read(&path).unwrap());
    }
}

#[test]
fn every_kind_of_damage_is_found_and_repaired_without_replacing_an_object() {
    for cared in [Cared::in_a_directory(), Cared::on_a_server()] {
        cared.cache(&["verify", "cache", "--content"]).expect_success().expect_stdout("no damage");
        let objects = cared.damage();
        let damaged = cared.cache(&["verify", "cache", "--content"]).expect_exit(1);
        let damaged = damaged
            .expect_stdout(&format!("{}  NAR missing: nar/", cared.path("alpha")))
            .expect_stdout(&format!("{}  wrong file: nar/", cared.path("beta")))
            .expect_stdout(&format!("{}  wrong file: nar/", cared.path("gamma")))
            .expect_stdout(&format!("{}  no trusted signature: ", cared.path("delta")))
            .expect_stdout(&format!("{}  reference missing: ", cared.path("zeta")));
        damaged.expect_stdout("5 narinfos verified").expect_stdout(", 5 damaged (");
        // The quick check reads no NAR, so it does not see a changed byte.
        cared.cache(&["verify", "cache"]).expect_exit(1).expect_stdout(", 4 damaged (");

        let repair = ["verify", "cache", "--content", "--repair", "--key", "lab-2"];
        cared.cache(&repair).expect_success().expect_stdout(", 5 repaired");
        cared.cache(&["verify", "cache", "--content"]).expect_success().expect_stdout("no damage");
        for (file, bytes) in objects {
            assert_eq!(std::fs::read(&file).unwrap(), bytes, "{} was changed", file.display());
        }
        for name in ["gamma", "delta"] {
            cared.substitute(name, &["lab-2"]);
        }
        cared.substitute("zeta", &["lab-1", "lab-2"]);
        assert!(cared.narinfo("gamma").contains("Sig: lab-1:"), "signatures are kept");
        if let Some(server) = &cared.server {
            server.expect_written_once();
        }
    }
}

#[test]
fn a_path_is_repaired_from_another_cache_or_reported_or_removed() {
    let cared = Cared::in_a_directory();
    let good = cared.scene.path("good");
    std::fs::create_dir(&good).unwrap();
    let url = format!("file://{}", good.display());
    cared.cache(&["copy", "cache", "--to", &url]).expect_success().expect_stdout("6 paths copied");
    cared.damage();
    std::fs::write(cared.narinfo_file("zeta"), "nonsense").unwrap();
    let nowhere = ["verify", "cache", "--content", "--repair", "--no-local-store"];
    let reported = cared.cache(&nowhere).expect_exit(1).expect_stdout("not repaired: ");
    reported.expect_stdout("no other cache is named with --from");
    let from = [&nowhere[..], &["--from", &url]].concat();
    // The foreign signature stays: the other cache does not vouch for it.
    let left = cared.cache(&from).expect_exit(1).expect_stdout("from the other cache as nar/");
    left.expect_stdout("name a key with --key").expect_stdout(", 4 repaired");
    assert_eq!(cared.json(&["verify", "cache", "--content"])["damaged"], 1);
    cared.substitute("zeta", &["lab-1"]);

    std::fs::remove_file(cared.nar_file("zeta")).unwrap();
    let remove = [&nowhere[..], &["--remove-broken"]].concat();
    cared.cache(&remove).expect_exit(1).expect_stdout("narinfo removed: ");
    assert!(!cared.narinfo_file("zeta").exists());
    assert!(cared.narinfo_file("delta").exists(), "a path that only lacks a signature stays");
}

#[test]
fn a_signature_is_added_only_where_something_vouches_for_the_path() {
    let cared = Cared::on_a_server();
    let sign = ["sign", "cache", "--key", "lab-2"];
    cared.cache(&sign).expect_success().expect_stdout("6 signed, 0 had the signature");
    cared.cache(&sign).expect_success().expect_stdout("0 signed, 6 had the signature");
    cared.substitute("gamma", &["lab-2"]);
    cared.substitute("gamma", &["lab-1"]);
    // Somebody puts another NAR hash into the bucket, without a valid signature.
    let hash = cared.field("alpha", "NarHash");
    let other = cared.field("beta", "NarHash");
    cared.edit_narinfo("alpha", &format!("NarHash: {hash}"), &format!("NarHash: {other}"));
    cared.edit_narinfo("alpha", "Sig: lab-2:", "Sig: gone-1:");
    let refused = cared.cache(&sign).expect_exit(1).expect_stdout("not signed: no trusted key");
    refused.expect_stdout("0 signed, 5 had the signature, 1 not signed");
    assert!(!cared.narinfo("alpha").contains("lab-2"));
    cared.cache(&["sign", "cache", "--key", "lab-3"]).expect_exit(2).expect_stderr("did you mean");
}

#[test]
fn garbage_is_condemned_first_and_removed_after_the_grace_period() {
    for cared in [Cared::in_a_directory(), Cared::on_a_server()] {
        cared.cache(&["gc", "cache"]).expect_exit(2).expect_stderr("there is no root");
        cared.cache(&["pin", "cache", "release", &cared.path("gamma")]).expect_success();
        cared.cache(&["pins", "cache"]).expect_success().expect_stdout(&cared.path("gamma"));
        std::fs::write(cared.objects.join("nar/orphan.nar.xz"), "nobody names this").unwrap();
        cared.age(10);
        let keys = || {
            let info = cared.json(&["info", "cache"]);
            (info["narinfos"]["count"].clone(), info["nars"]["count"].clone())
        };
        let before = keys();
        assert_eq!(before, (6.into(), 7.into()));
        let dry = cared.json(&["gc", "cache"]);
        assert_eq!((&dry["reachable"], &dry["removable"]["count"]), (&3.into(), &0.into()));
        assert_eq!(dry["waiting"]["count"], 3 + 4 + 3, "narinfos, NARs and listings");
        let gc = ["gc", "cache", "--run", "--settle", "0s"];
        cared.cache(&gc).expect_success().expect_stdout("Removed: 0 objects");
        cared.cache(&gc).expect_success().expect_stdout("Condemned: 10 objects");
        assert_eq!(keys(), before, "the grace period has not passed");
        cared.age(3);
        cared.cache(&["gc", "cache"]).expect_success().expect_stdout("10 objects, ");
        assert_eq!(keys(), before, "a dry run changes nothing");
        cared.cache(&gc).expect_success().expect_stdout("Removed: 10 objects");
        assert_eq!(keys(), (3.into(), 3.into()));
        cared.cache(&["verify", "cache", "--content"]).expect_success();
        cared.substitute("gamma", &["lab-1"]);
        cared.cache(&["unpin", "cache", "release"]).expect_success();
        cared.cache(&["unpin", "cache", "release"]).expect_exit(1).expect_stderr("no pin");
    }
}

#[test]
fn a_path_that_is_uploaded_again_after_its_condemnation_stays() {
    let cared = Cared::in_a_directory();
    cared.cache(&["pin", "cache", "release", &cared.path("gamma")]).expect_success();
    cared.age(10);
    let gc = ["gc", "cache", "--run", "--settle", "0s"];
    cared.cache(&gc).expect_success();
    cared.age(3);
    // The narinfo of zeta is written again; eta, to which it refers, is not.
    let text = cared.narinfo("zeta");
    std::fs::write(cared.narinfo_file("zeta"), text).unwrap();
    // Only delta is removed, with its NAR and its listing.
    cared.cache(&gc).expect_success().expect_stdout("Removed: 3 objects");
    cared.substitute("zeta", &["lab-1"]);
    assert!(!cared.narinfo_file("delta").exists());
}

#[test]
fn incomplete_uploads_are_reported_and_ended() {
    let cared = Cared::on_a_server();
    let server = cared.server.as_ref().unwrap();
    let bucket = hookrun_capability::object_store::ObjectStores::new(
        &hookrun_config::Config::load(&cared.scene.config_path()).unwrap(),
        &cared.scene.dirs(),
    )
    .bucket("cache")
    .unwrap();
    // A process that is killed after the first part.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let part = || Ok(vec![0; 20 << 20].into());
        let pieces = futures_util::stream::iter([part(), part()]);
        let pieces = futures_util::StreamExt::chain(pieces, futures_util::stream::pending());
        let sending = bucket.put_stream("nar/half.nar", "application/x-nix-nar", Box::pin(pieces));
        let begun = async {
            while server.open_uploads().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! { _ = sending => panic!("it has no end"), () = begun => {} }
    });
    drop(runtime);
    assert_eq!(server.open_uploads().len(), 1);
    cared.cache(&["info", "cache"]).expect_success().expect_stdout("incomplete uploads  1");
    cared.cache(&["verify", "cache"]).expect_success().expect_stdout("Incomplete uploads: 1");
    let gc = ["gc", "cache", "--run", "--keep-newer-than", "1d"];
    cared.cache(&gc).expect_success().expect_stdout("Ended incomplete uploads: 1");
    assert!(server.open_uploads().is_empty());
}

#[test]
fn paths_and_links_are_pushed_with_their_closures() {
    let cared = Cared::in_a_directory();
    let directory = cared.scene.path("pushed");
    std::fs::create_dir(&directory).unwrap();
    let url = format!("file://{}", directory.display());
    let link = cared.scene.path("result");
    std::os::unix::fs::symlink(cared.scene.out_path("gamma"), &link).unwrap();
    let link = link.display().to_string();
    let push = ["push", &url, &link, "--key", "lab-1"];
    cared.cache(&push).expect_success().expect_stdout("3 paths uploaded");
    cared.cache(&push).expect_success().expect_stdout("0 paths uploaded").expect_stdout("3 were");
    let both = ["push", &url, &link, &cared.path("zeta")];
    let both = cared.cache(&both).expect_success().expect_stdout("2 paths uploaded");
    both.expect_stdout("3 of them got a signature");
    cared.cache(&["verify", &url, "--content"]).expect_success().expect_stdout("5 narinfos");
    let absent = format!("{}x", cared.path("alpha"));
    cared.cache(&["push", &url, &absent]).expect_exit(2).expect_stderr("build it first");
    cared.cache(&["push", &url, "./none"]).expect_exit(2).expect_stderr("neither a store path");
}

#[test]
fn a_cache_is_copied_inside_the_service_and_between_services() {
    let cared = Cared::on_a_server();
    let server = cared.server.as_ref().unwrap();
    let other = server.object_store("s3://other", cared.scene.dir(), SECRET_ACCESS_KEY);
    let config = std::fs::read_to_string(cared.scene.config_path()).unwrap();
    let mut config: toml::Table = config.parse().unwrap();
    config["object-stores"].as_table_mut().unwrap().insert("other".to_owned(), other.into());
    cared.scene.set_config(&toml::to_string(&config).unwrap());
    let copied = cared.json(&["copy", "cache", "--to", "other", &cared.path("gamma")]);
    assert_eq!((&copied["copied"]["count"], &copied["server-side"]), (&3.into(), &3.into()));
    assert_eq!(copied["failed"], serde_json::json!([]));
    cared.cache(&["verify", "other", "--content"]).expect_success().expect_stdout("3 narinfos");
    let directory = cared.scene.path("directory");
    std::fs::create_dir(&directory).unwrap();
    let url = format!("file://{}", directory.display());
    cared.cache(&["copy", "other", "--to", &url]).expect_success();
    cared.cache(&["copy", "cache", "--to", &url]).expect_success().expect_stdout("3 were there");
    cared.cache(&["verify", &url, "--content"]).expect_success().expect_stdout("6 narinfos");
    server.expect_written_once();
}

#[test]
fn an_interrupted_verification_continues_where_it_ended() {
    let is_down = Arc::new(AtomicBool::new(false));
    let rule = Arc::clone(&is_down);
    let cared = Cared::on(|scene| {
        S3Server::start_faulty(&scene.path("s3"), &["bucket"], move |request| {
            // The last narinfo by hash part.
            let last = request.starts_with("GET") && request.contains("/nar/");
            (last && rule.load(Ordering::SeqCst))
                .then_some(Fault::Answer(403, "InvalidAccessKeyId"))
        })
    });
    is_down.store(true, Ordering::SeqCst);
    let key = cared.scene.public_key("lab-1").to_owned();
    let verify = ["verify", "cache", "--content", "--parallel", "1", "--only-these-keys"];
    let verify = [&verify[..], &["--trusted-public-key", &key]].concat();
    cared.cache(&verify).expect_exit(4).expect_stderr("InvalidAccessKeyId");
    is_down.store(false, Ordering::SeqCst);
    cared.cache(&verify).expect_success().expect_stdout("6 narinfos verified");
    let requests = || {
        let requests = cared.server.as_ref().unwrap().requests();
        requests.iter().filter(|request| request.contains(".narinfo")).count()
    };
    // A run that has verified some narinfos.
    let directory = cared.scene.dirs().verifications();
    let started = 1_700_000_000;
    cared.cache(&verify).expect_success();
    let mut hashes: Vec<String> = ["alpha", "beta", "gamma", "delta", "eta", "zeta"]
        .iter()
        .map(|name| hookrun_nix::narinfo::hash_part(&cared.path(name)).to_owned())
        .collect();
    hashes.sort();
    let place = cared.json(&["info", "cache", "--quick"])["place"].as_str().unwrap().to_owned();
    let file = hookrun_cache::progress::Progress::file(&directory, &place);
    let progress = serde_json::json!({
        "version": 1, "settings": "content=true keys={\"lab-1\"}", "started": started,
        "after": hashes[3], "checked": 4, "bytes": 0, "unchecked": 0, "findings": [],
    });
    std::fs::write(&file, progress.to_string()).unwrap();
    let before = requests();
    let continued = cared.cache(&verify).expect_success();
    continued.expect_stderr("after 4 narinfos").expect_stdout("6 narinfos verified");
    assert_eq!(requests() - before, 2, "only the rest was read");
    assert!(!file.exists(), "a complete run leaves no progress");
}

#[test]
fn a_cache_with_urls_and_texts_of_an_attacker_is_reported_and_nothing_else_is_read() {
    let cared = Cared::in_a_directory();
    std::fs::write(cared.scene.path("secret"), "secret").unwrap();
    let url = cared.field("alpha", "URL");
    cared.edit_narinfo("alpha", &url, "../secret");
    let bomb = vec![b'x'; 2 << 20];
    std::fs::write(cared.narinfo_file("beta"), bomb).unwrap();
    cared.edit_narinfo("delta", "URL: ", "URL: \u{1b}]0;title\u{7}");
    let found = cared.cache(&["verify", "cache", "--content"]).expect_exit(1);
    let found = found
        .expect_stdout("URL outside the cache: the URL `../secret`")
        .expect_stdout("malformed narinfo: it has more than 1048576 bytes");
    assert!(!found.stdout.contains('\u{1b}'), "{}", found.stdout);
    assert_eq!(cared.cache(&["gc", "cache", "--keep-newer-than", "1d"]).status.code(), Some(0));
}

#[test]
fn pins_hold_and_repairs_succeed_while_a_second_installation_uploads() {
    let cared = Cared::on_a_server();
    cared.cache(&["pin", "cache", "release", &cared.path("gamma")]).expect_success();
    cared.damage();
    cared.age(10);
    // The second installation has a queue of its own and uploads everything, again and again.
    let second = cared.scene.path("second-state");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let uploads = scope.spawn(|| {
            let run = |arguments: &[&str]| {
                let mut command = cared.scene.hookrun_command(arguments);
                command.env("HOOKRUN_STATE_DIR", &second).stdout(Stdio::null());
                Ran::of(&mut command)
            };
            let mut rounds = 0;
            while !is_over.load(Ordering::SeqCst) || rounds == 0 {
                run(&["sync", "--built", "--force"]).expect_success();
                // An upload of what is being removed at this moment waits for the removal.
                let drained = run(&["drain"]);
                assert!(matches!(drained.status.code(), Some(0 | 1)), "{}", drained.stderr);
                rounds += 1;
            }
            // Nothing is changed if no upload waits.
            run(&["queue", "retry", "--plugin", "cache"]);
            run(&["drain"]).expect_success();
            rounds
        });
        let repair = ["verify", "cache", "--content", "--repair", "--key", "lab-2"];
        cared.cache(&repair).expect_success();
        let gc = ["gc", "cache", "--run", "--settle", "1s", "--keep-newer-than", "1h"];
        for _ in 0..3 {
            cared.cache(&gc).expect_success();
            cared.age(3);
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(uploads.join().unwrap() > 0);
    });
    cared.cache(&["verify", "cache", "--content"]).expect_success().expect_stdout("no damage");
    cared.substitute("gamma", &["lab-1"]);
    cared.server.as_ref().unwrap().expect_written_once();
}

#[test]
fn what_was_uploaded_recently_is_not_condemned() {
    let cared = Cared::in_a_directory();
    let gc = ["gc", "cache", "--run", "--settle", "0s", "--without-roots"];
    cared.cache(&gc).expect_success().expect_stdout("too recently to be condemned: 6 paths");
    assert!(cared.narinfo_file("alpha").exists());
    let list = cared.objects.join("hookrun/gc/condemned");
    assert!(!list.exists() || std::fs::read_to_string(list).unwrap().lines().count() == 1);
}
