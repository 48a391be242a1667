use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::grants::{Effective, Wants};
use hookrun_config::{Config, StoreScope};

fn reach(granted: StoreScope, paths: &[&str]) -> StoreScopeCheck {
    let text = "[plugins.reader]\nsource = \"reader.wasm\"\n";
    let config = Config::parse(Path::new("/etc/hookrun/hookrun.toml"), text).unwrap();
    let context = PluginContext {
        plugin: config.plugins["reader"].clone(),
        config_file: PathBuf::from("/etc/hookrun/hookrun.toml"),
        config_json: "{}".to_owned(),
        wants: Wants::default(),
        effective: Effective {
            grant: hookrun_config::Grant { nix_store: granted, ..hookrun_config::Grant::default() },
            policy: false,
        },
    };
    let nix = NixDirs::new("/nix/store", "/nowhere", "/nowhere");
    let scope = EventScope {
        nix,
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        event: String::new(),
    };
    StoreScopeCheck::new(&Arc::new(NixStores::sample()), &context, &scope)
}

#[test]
fn a_path_out_of_scope_is_refused_with_the_line_to_write() {
    let (drv, outputs) = sample::Sample::built();
    let (dev, out) = (outputs[0].path.as_str(), outputs[1].path.as_str());
    let closure = sample::Sample::new().closure(&[out.to_owned()]).unwrap();
    let library = closure[1].as_str();
    let check = |granted, path: &str| {
        let reach = reach(granted, &[&drv, out]);
        let result = reach.check(&[path.to_owned()]);
        result.map_or_else(
            |error| format!("{}: {error}", error.kind.as_str()),
            |()| "allowed".to_owned(),
        )
    };
    let table: Vec<String> = [
        (StoreScope::None, out),
        (StoreScope::Outputs, out),
        (StoreScope::Outputs, drv.as_str()),
        (StoreScope::Outputs, library),
        (StoreScope::Closure, library),
        (StoreScope::Closure, dev),
        (StoreScope::Closure, "/etc/shadow"),
        (StoreScope::Closure, "/nix/store/../../etc/shadow"),
        (StoreScope::Closure, &format!("{out}/bin")),
    ]
    .iter()
    .map(|(granted, path)| format!("{granted:?} {path}\n  {}", check(*granted, path)))
    .collect();
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn reading_the_closure_needs_its_grant() {
    let (drv, outputs) = sample::Sample::built();
    let out = outputs[1].path.clone();
    assert!(
        reach(StoreScope::Closure, &[&drv, &out]).check_closure(std::slice::from_ref(&out)).is_ok()
    );
    let error = reach(StoreScope::Outputs, &[&drv, &out]).check_closure(&[out]).unwrap_err();
    assert_eq!(error.kind.as_str(), "denied");
}

#[test]
fn the_sample_store_is_consistent() {
    let sample = sample::Sample::new();
    let (_, outputs) = sample::Sample::built();
    let roots: Vec<String> = outputs.iter().map(|output| output.path.clone()).collect();
    let closure = sample.closure(&roots).unwrap();
    assert_eq!(closure.len(), 4);
    let position: HashMap<&str, usize> =
        closure.iter().enumerate().map(|(n, path)| (path.as_str(), n)).collect();
    let mut infos = Vec::new();
    let take = &mut |info: Option<PathInfo>| {
        infos.extend(info);
        Ok(())
    };
    sample.each_info(&closure, take).unwrap();
    assert_eq!(infos.len(), 4);
    for info in &infos {
        assert!(is_store_path(sample::STORE_DIR, &info.path), "{}", info.path);
        assert!(
            info.references
                .iter()
                .all(|reference| position[reference.as_str()] <= position[info.path.as_str()])
        );
        let Source::Bytes(nar) = sample.nar_source(&info.path) else {
            panic!("a sample has its bytes")
        };
        nix_archive::nar::decode(&nar).unwrap();
        assert_eq!(hookrun_nix::nar::hash(&nar), (info.nar_hash.clone(), info.nar_size));
    }
    assert_eq!(sample.read_file(&roots[1], "share/greet.txt", 1, 3).unwrap(), b"ell");
    assert_eq!(sample.list_directory(&roots[0], "", &mut Budget::of(1000)).unwrap().len(), 2);
}

#[test]
fn reads_stay_below_the_store_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("path");
    std::fs::create_dir_all(path.join("bin")).unwrap();
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    std::fs::write(path.join("bin/tool"), "0123456789").unwrap();
    std::fs::write(path.join(std::ffi::OsString::from_vec(b"\xff".to_vec())), "").unwrap();
    for (target, link) in [("../secret", "up"), ("/etc/passwd", "away"), ("bin", "inner")] {
        std::os::unix::fs::symlink(target, path.join(link)).unwrap();
    }
    // A FIFO without a writer and a socket must be neither waited for nor read.
    let fifo = std::process::Command::new("mkfifo").arg(path.join("bin/fifo")).status().unwrap();
    assert!(fifo.success());
    let _socket = std::os::unix::net::UnixListener::bind(path.join("bin/socket")).unwrap();
    assert_eq!(tree::read(&path, "bin/tool", 2, 3).unwrap(), b"234");
    assert_eq!(tree::read(&path, "bin/tool", 8, 100).unwrap(), b"89");
    let names: Vec<String> = tree::list(&path, "", &mut Budget::of(10_000))
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(names, ["away", "bin", "inner", "up", "\u{fffd}"]);
    let errors: Vec<String> = [
        "up",
        "away",
        "inner/tool",
        "../secret",
        "bin/../../secret",
        "/etc/passwd",
        "bin",
        "none",
        "bin/tool/x",
        "bin/fifo",
        "bin/socket",
        "bin\0/tool",
        "\0",
        "bin//tool",
        "bin/",
        "./bin/tool",
        "\u{fffd}",
        &"x".repeat(300),
    ]
    .iter()
    .map(|relative| tree::read(&path, relative, 0, 10).unwrap_err())
    .map(|error| {
        format!("{}: {error}", error.kind.as_str()).replace(&dir.path().display().to_string(), "/s")
    })
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
    for none in ["bin/tool", "bin/fifo", "bin/socket", "inner", "up"] {
        assert_eq!(
            tree::list(&path, none, &mut Budget::of(10_000)).unwrap_err().kind.as_str(),
            "invalid",
            "{none}"
        );
    }
    let names: Vec<String> = tree::list(&path, "bin", &mut Budget::of(10_000))
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(names, ["tool"], "files that Nix cannot have created are not shown");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(
        tree::list(&link, "", &mut Budget::of(10_000)).unwrap_err().kind.as_str(),
        "invalid"
    );
}

/// A store path, or a directory in it, is replaced by a symlink again and again while it is read. A
/// read returns either content of the store path or nothing.
#[test]
fn a_link_swapped_in_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (path, aside) = (dir.path().join("path"), dir.path().join("aside"));
    std::fs::create_dir_all(path.join("sub")).unwrap();
    std::fs::write(path.join("sub/name"), "public").unwrap();
    std::fs::create_dir(dir.path().join("private")).unwrap();
    std::fs::write(dir.path().join("private/name"), "secret").unwrap();
    std::os::unix::fs::symlink(dir.path().join("private"), &aside).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &aside,
                    rustix::fs::CWD,
                    path.join("sub"),
                    exchange,
                )
                .unwrap();
            }
        });
        let (mut read, mut refused) = (0, 0);
        while read == 0 || refused == 0 || read + refused < 2000 {
            match tree::read(&path, "sub/name", 0, 10) {
                Ok(bytes) => {
                    assert_eq!(bytes, b"public");
                    read += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind.as_str(), "invalid", "{error}");
                    refused += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A guest requests the same data again and again. No more is collected than may be returned.
#[test]
fn an_answer_ends_where_its_budget_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("path");
    std::fs::create_dir(&path).unwrap();
    for number in 0..100 {
        std::os::unix::fs::symlink("x".repeat(1000), path.join(number.to_string())).unwrap();
    }
    let error = tree::list(&path, "", &mut Budget::of(50_000)).unwrap_err();
    assert_eq!(error.kind.as_str(), "limit");
    let (drv, outputs) = sample::Sample::built();
    let out = outputs[1].path.clone();
    let reach = reach(StoreScope::Closure, &[&drv, &out]);
    let mut budget = Budget::of(10_000);
    let mut taken = 0;
    let error = reach
        .each_valid(&vec![out; 20_000], |info| {
            taken += 1;
            budget.take(info.references.iter().map(|path| path.len() as u64).sum())
        })
        .unwrap_err();
    assert_eq!(error.kind.as_str(), "limit");
    assert!(taken < 1000, "{taken} infos were made");
}

/// Creating device files needs root. `/dev` contains some and serves as a store directory here.
#[test]
fn device_files_are_refused() {
    for device in ["/dev/null", "/dev/zero", "/dev/tty"] {
        let error = tree::read(Path::new(device), "", 0, 10).unwrap_err();
        assert!(["invalid", "not-found"].contains(&error.kind.as_str()), "{device}: {error}");
        assert_eq!(
            tree::list(Path::new(device), "", &mut Budget::of(10_000)).unwrap_err().kind.as_str(),
            "invalid",
            "{device}"
        );
    }
}

/// Names that are not UTF-8 are shown with U+FFFD in lists, and are unchanged in NARs.
#[test]
fn names_that_are_not_utf_8_stay_themselves_in_nars() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("path");
    std::fs::create_dir(&path).unwrap();
    let name = std::ffi::OsString::from_vec(b"caf\xe9".to_vec());
    std::fs::write(path.join(&name), "x").unwrap();
    std::os::unix::fs::symlink(&name, path.join("link")).unwrap();
    let listed = tree::list(&path, "", &mut Budget::of(10_000)).unwrap();
    let shown: Vec<(&str, Option<&str>)> =
        listed.iter().map(|entry| (entry.name.as_str(), entry.target.as_deref())).collect();
    assert_eq!(shown, [("caf\u{fffd}", None), ("link", Some("caf\u{fffd}"))]);
    assert_eq!(tree::read(&path, "caf\u{fffd}", 0, 1).unwrap_err().kind.as_str(), "not-found");
    let mut nar = Vec::new();
    let expected = Expected { path: String::new(), nar_hash: String::new(), nar_size: 1 << 20 };
    let source = Source::Path(path);
    // A content that differs from the database is noticed at its end.
    hookrun_nix::nar::write(&source, &expected, hookrun_nix::nar::Compression::None, &mut nar)
        .unwrap_err();
    let holds = |bytes: &[u8]| nar.windows(bytes.len()).filter(|window| *window == bytes).count();
    assert_eq!(holds(b"caf\xe9"), 2, "as a name and as a target");
}

use std::os::unix::ffi::OsStringExt as _;

proptest::proptest! {
    /// No path that a guest gives below a store path reads a file beside the store path.
    #[test]
    fn any_relative_path(relative in "(\\.\\./|\\./|/|a/|l/|u/|\\PC){0,6}(secret|tool|up)?") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::create_dir_all(path.join("a")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("..", path.join("u")).unwrap();
        std::os::unix::fs::symlink("../secret", path.join("up")).unwrap();
        proptest::prop_assert!(tree::read(&path, &relative, 0, 100).is_err());
    }
}
