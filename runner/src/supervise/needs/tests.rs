use std::collections::BTreeSet;

use super::*;
use hookrun_config::Config;
use hookrun_host::{Artifact, Compiler, Host};

fn scene(text: &str) -> (Config, Dirs) {
    let dirs =
        Dirs { config: "/etc/hookrun/hookrun.toml".into(), state: "/var/lib/hookrun".into() };
    (Config::parse(&dirs.config, text).unwrap(), dirs)
}

fn wall_of(text: &str, variables: &[(&str, &str)]) -> Wall {
    let (config, dirs) = scene(text);
    let empty = tempfile::tempdir().unwrap();
    let nowhere = Dirs { state: empty.path().to_owned(), ..dirs.clone() };
    let host = Host::new(&nowhere, Compiler::InProcess);
    let artifacts: Vec<Artifact> =
        config.plugins.values().map(|plugin| host.open(plugin, &config).unwrap()).collect();
    let effective: Vec<&Effective> = artifacts.iter().map(Artifact::effective).collect();
    let nix = NixDirs::new("/nix/store", "/nix/var/nix", "/etc/nix");
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    wall(&effective, &Services::new(&config, &dirs), &dirs, &nix, Identity::Powerless, variable)
}

const UPLOAD: &str = "[plugins.cache]\nsource = \"bundled:s3-upload\"\nconfig = { bucket = \"cache\" }\n\
    grant = { nix-store = \"closure\", object-store = [\"cache\"] }\n[object-stores.cache]\n";

#[test]
fn a_store_in_a_directory_needs_no_network() {
    let wall = wall_of(UPLOAD, &[]);
    let paths = |set: &BTreeSet<PathBuf>| {
        set.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    let state = |name: &str| format!("/var/lib/hookrun/{name}");
    let written = ["object-stores/cache", "presence", "uploads"].map(state);
    assert_eq!(paths(&wall.write), written);
    assert_eq!(paths(&wall.read), ["/nix/store", "/nix/var/nix/db", "/var/lib/hookrun/artifacts"]);
    assert!(!wall.network && wall.connect.is_empty());
}

#[test]
fn ports_come_from_the_settings_and_the_proxies() {
    let s3 = format!(
        "{UPLOAD}url = \"s3://bucket\"\nendpoint = \"http://127.0.0.1:9000\"\ncredentials.anonymous = true\n"
    );
    let ports = |wall: Wall| wall.connect.into_iter().collect::<Vec<_>>();
    assert_eq!(ports(wall_of(&s3, &[])), [53, 9000]);
    assert_eq!(ports(wall_of(&s3, &[("https_proxy", "proxy.example.org:3128")])), [53, 3128, 9000]);
    let role = format!("{UPLOAD}url = \"s3://bucket\"\n");
    assert_eq!(ports(wall_of(&role, &[])), [53, 80, 443], "and the machine's metadata");
}

#[test]
fn without_grants_nothing_is_allowed() {
    let wall = wall_of("[plugins.policy]\nsource = \"bundled:speed-factor\"\n", &[]);
    assert_eq!(wall.read, BTreeSet::from([PathBuf::from("/var/lib/hookrun/artifacts")]));
    assert!(wall.write.is_empty() && !wall.network);
}

#[test]
fn directories_are_made_in_safe_places_only() {
    let directory = tempfile::tempdir().unwrap();
    let dirs = Dirs { config: directory.path().join("c"), state: directory.path().join("state") };
    let target = dirs.plugin_state();
    let wall = Wall { write: BTreeSet::from([target.clone()]), ..Wall::default() };
    make_directories(&wall, &dirs).unwrap();
    assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o700);
    let open = directory.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let wall = Wall { write: BTreeSet::from([open.join("store")]), ..Wall::default() };
    let error = make_directories(&wall, &dirs)
        .unwrap_err()
        .replace(&directory.path().display().to_string(), "DIR");
    insta::assert_snapshot!(error, @"DIR/open/store cannot be prepared for the user that runs plugins (DIR/open can be changed by other users); run `mkdir -p DIR/open/store`");
}
