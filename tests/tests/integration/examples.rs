//! The files in `examples/` are valid.

use std::path::{Path, PathBuf};
use std::process::Command;

use hookrun_tests::lab::{Need, Ran, Scene, minor_version, require};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples").join(name)
}

#[test]
fn the_configuration_passes_the_check() {
    let scene = Scene::new().signing_key("cache.example.org-1");
    let secrets = scene.path("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::copy(scene.path("keys/cache.example.org-1.secret"), secrets.join("cache-private-key"))
        .unwrap();
    for name in ["s3-access-key-id", "s3-secret-access-key", "smtp-password", "slack-bot-token"] {
        std::fs::write(secrets.join(name), "example\n").unwrap();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(secrets.join(name), readable).unwrap();
    }
    let text = std::fs::read_to_string(example("hookrun.toml")).unwrap();
    scene.set_config(&text.replace("/etc/hookrun/secrets", secrets.to_str().unwrap()));
    let ran = scene.hookrun(&["check"]).expect_success();
    for plugin in ["cache", "nondeterminism", "chat", "policy"] {
        assert!(ran.stdout.contains(&format!("plugin {plugin}: ")), "{plugin}: {}", ran.account());
    }
}

#[test]
fn nix_knows_every_setting() {
    let scene = Scene::new();
    let mut text = std::fs::read_to_string(example("nix.conf")).unwrap();
    text.push_str(
        &std::fs::read_to_string(scene.private_nix().conf_dir().join("nix.conf")).unwrap(),
    );
    std::fs::write(scene.private_nix().conf_dir().join("nix.conf"), text).unwrap();
    let shown =
        scene.nix("nix", &["show-config"]).expect_success().expect_silent_about("unknown setting");
    // 2.25 to 2.33 ignore this setting of nix.conf, as the example says.
    let forgets = (25..=33).contains(&minor_version());
    assert_eq!(
        shown.stdout.contains("build-hook = /usr/lib/hookrun/hookrun-build-hook"),
        !forgets,
        "{}",
        shown.account()
    );
}

#[test]
fn the_nixos_module_has_no_syntax_error() {
    let scene = Scene::new();
    let module = example("nixos/hookrun.nix");
    scene.nix("nix-instantiate", &["--parse", module.to_str().unwrap()]).expect_success();
}

#[test]
fn the_units_are_valid_for_systemd() {
    if !require(Need::Program("systemd-analyze")) {
        return;
    }
    let scene = Scene::new();
    let units = ["hookrun.service", "hookrun.path"].map(|name| {
        let text = std::fs::read_to_string(example("systemd").join(name)).unwrap();
        let unit = scene.path(name);
        std::fs::write(
            &unit,
            text.replace("/usr/lib/hookrun", scene.path("bin").to_str().unwrap()),
        )
        .unwrap();
        unit
    });
    // Each unit finds the other in the same directory.
    let ran = Ran::of(Command::new("systemd-analyze").arg("verify").args(&units)).expect_success();
    assert_eq!(ran.stderr, "", "{}", ran.account());
}
