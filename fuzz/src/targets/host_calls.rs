//! Arguments of host calls: paths, keys, fingerprints, mail. Structured: the bytes become a call
//! and its arguments.
//!
//! What is asserted is what a grant promises: nothing outside of a store path is read, no object
//! has another key than was said, no mail goes to an address that the configuration does not name
//! or has a header that a plugin may not set, and only what the database says is signed.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use arbitrary::{Arbitrary as _, Unstructured};
use hookrun_capability::Services;
use hookrun_capability::grants::{Effective, Wants};
use hookrun_capability::mail::Message;
use hookrun_capability::nix_store::real::Real;
use hookrun_capability::nix_store::{Backend as _, Budget, StoreScopeCheck};
use hookrun_capability::{EventScope, PluginContext};
use hookrun_config::{Config, StoreScope};
use hookrun_nix::database::PathInfo;
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;

/// What lies outside of the store path, and must never be read.
const OUTSIDE: &[u8] = b"outside";
/// Bytes of keys that a list may have here.
const MAX_LISTED: u64 = 1 << 20;
const STORE: &str = "/nix/store";
const IN_SCOPE: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello";

/// A tree with ways out, and what is outside.
struct Tree {
    _directory: tempfile::TempDir,
    store_path: PathBuf,
}

static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let store_path = directory.path().join("00bgd045z0d4icpbc2yyz4gx48ak44la-hello");
    std::fs::create_dir_all(store_path.join("dir")).unwrap();
    std::fs::write(store_path.join("dir/file"), "inside").unwrap();
    std::fs::write(directory.path().join("outside"), OUTSIDE).unwrap();
    std::os::unix::fs::symlink("../outside", store_path.join("escape")).unwrap();
    std::os::unix::fs::symlink("..", store_path.join("dir/up")).unwrap();
    std::os::unix::fs::symlink(directory.path(), store_path.join("up")).unwrap();
    Tree { _directory: directory, store_path }
});

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = "[plugins.x]\nsource = \"x.wasm\"\nconfig = { to = [\"ann@example.org\"] }\n[object-stores.own]\n\
                [mail.default]\nto = [\"Bob <bob@example.org>\"]\n[signing-keys.own-1]\nfile = \"own\"\n";
    Config::parse(Path::new("/etc/hookrun/hookrun.toml"), text).unwrap()
});

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());

pub(crate) fn run(data: &[u8]) {
    // Too few bytes for the arguments: no call is made.
    let _ = call(&mut Unstructured::new(data));
}

fn call(from: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let dirs =
        Dirs { config: "/etc/hookrun/hookrun.toml".into(), state: "/proc/nonexistent".into() };
    let services = Services::in_memory(&CONFIG, &dirs);
    match from.int_in_range(0..=4_u8)? {
        0 => tree(&String::arbitrary(from)?, u64::arbitrary(from)?, u32::arbitrary(from)?),
        1 => scope(&services, &Vec::<String>::arbitrary(from)?),
        2 => objects(&services, &<(String, String, String)>::arbitrary(from)?),
        3 => mail(
            &services,
            &Vec::<String>::arbitrary(from)?,
            <(String, String, Vec<(String, String)>, String)>::arbitrary(from)?,
        ),
        _ => sign(&services, <(String, String, u64, Vec<String>)>::arbitrary(from)?),
    }
    Ok(())
}

fn tree(relative: &str, offset: u64, length: u32) {
    let path = TREE.store_path.to_str().unwrap();
    let nix = NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
    let store = Real::new(nix);
    if let Ok(bytes) = store.read_file(path, relative, offset, u64::from(length)) {
        assert!(
            relative == "dir/file" && b"inside".ends_with(&bytes[..])
                || bytes.is_empty()
                || b"inside".starts_with(&bytes[..])
        );
        assert_ne!(bytes, OUTSIDE);
    }
    if let Ok(entries) = store.list_directory(path, relative, &mut Budget::of(MAX_LISTED)) {
        assert!(matches!(relative, "" | "dir"), "{relative:?}");
        assert!(entries.iter().all(|entry| entry.name != "outside"));
    }
}

fn scope(services: &Services, paths: &[String]) {
    for granted in [StoreScope::None, StoreScope::Outputs] {
        let plugin = PluginContext {
            plugin: CONFIG.plugins.get("x").unwrap().clone(),
            config_file: CONFIG.path.clone(),
            config_json: "{}".to_owned(),
            wants: Wants { nix_store: granted, ..Wants::default() },
            effective: Effective {
                grant: hookrun_config::Grant {
                    nix_store: granted,
                    ..hookrun_config::Grant::default()
                },
                policy: false,
            },
        };
        let nix = NixDirs::new(STORE, "/nix/var/nix", "/etc/nix");
        let reach = StoreScopeCheck::new(
            services.nix_stores(),
            &plugin,
            &EventScope { nix, paths: vec![IN_SCOPE.to_owned()], event: String::new() },
        );
        if reach.check(paths).is_ok() {
            assert!(
                paths.is_empty()
                    || (granted == StoreScope::Outputs
                        && paths.iter().all(|path| path == IN_SCOPE))
            );
        }
    }
}

fn objects(services: &Services, (key, content_type, prefix): &(String, String, String)) {
    let stores = services.object_stores();
    RUNTIME.block_on(async {
        if stores.put("own", key, content_type, b"body".to_vec()).await.is_ok() {
            assert!(
                !key.is_empty() && key.split('/').all(|part| !matches!(part, "" | "." | "..")),
                "{key:?}"
            );
            assert!(
                !key.contains(['\0', '\r', '\n']) && !content_type.contains(['\r', '\n']),
                "{key:?} {content_type:?}"
            );
            assert_eq!(stores.get("own", key, 4).await.unwrap().as_deref(), Some(&b"body"[..]));
            assert_eq!(
                stores.list("own", "", 10, MAX_LISTED).await.unwrap(),
                std::slice::from_ref(key)
            );
        }
        if let Ok(keys) = stores.list("own", prefix, 10, MAX_LISTED).await {
            assert!(keys.iter().all(|key| key.starts_with(prefix.as_str())));
        }
        drop(stores.exists("own", &[key.clone(), prefix.clone()]).await);
        drop(stores.get("own", prefix, 1).await);
    });
}

fn mail(
    services: &Services,
    to: &[String],
    (subject, text, headers, identity): (String, String, Vec<(String, String)>, String),
) {
    const ALLOWED: [&str; 2] = ["ann@example.org", "bob@example.org"];
    let own: Vec<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let message = Message { subject, text, html: None, headers, identity, in_reply_to: None };
    let plugin = CONFIG.plugins.get("x").unwrap();
    let sent = RUNTIME.block_on(services.mail().send(plugin, "default", to, &message, ""));
    if let Err(error) = sent {
        assert!(services.mail().captured().is_empty() && !error.message.contains('\n'), "{error}");
        return;
    }
    let captured = services.mail().captured().into_iter().next().unwrap();
    assert!(
        captured
            .recipients
            .iter()
            .all(|to| ALLOWED.iter().any(|allowed| allowed.eq_ignore_ascii_case(to))),
        "{captured:?}"
    );
    assert!(captured.raw.is_ascii(), "{captured:?}");
    let raw = String::from_utf8_lossy(&captured.raw);
    let (head, _) = raw.split_once("\r\n\r\n").unwrap();
    for line in head.split("\r\n").filter(|line| !line.starts_with([' ', '\t'])) {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let host = [
            "from",
            "to",
            "date",
            "subject",
            "message-id",
            "mime-version",
            "content-type",
            "content-transfer-encoding",
            "auto-submitted",
            "x-hookrun-plugin",
        ];
        assert!(
            host.contains(&&*name) || (name.starts_with("x-") && own.contains(&name)),
            "{line:?}"
        );
    }
}

fn sign(
    services: &Services,
    (path, nar_hash, nar_size, references): (String, String, u64, Vec<String>),
) {
    let info = PathInfo {
        path: path.clone(),
        nar_hash,
        nar_size,
        references,
        deriver: None,
        signatures: Vec::new(),
        ca: None,
        ultimate: true,
        registration_time: 0,
    };
    if let Ok(signature) = services.signing_keys().sign("own-1", STORE, &info) {
        assert!(signature.starts_with("own-1:") && path.starts_with(STORE), "{info:?}");
    }
}
