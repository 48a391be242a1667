//! `hookrun new` and `hookrun pack`: projects as they are generated build and pass their tests.
//! `cargo xtask author-languages` does the same for JavaScript and Python.

use std::path::Path;
use std::process::Command;

use hookrun_tests::document::repository;
use hookrun_tests::hostile::made::crafted;
use hookrun_tests::lab::{Need, Ran, hookrun_program, require};

/// Runs `hookrun` in a directory, without the configuration of the system.
fn hookrun(directory: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(hookrun_program());
    command
        .current_dir(directory)
        .args(arguments)
        .env("HOOKRUN_STATE_DIR", directory.join("state"))
        .env_remove("HOOKRUN_CONFIG");
    Ran::of(&mut command)
}

#[test]
fn a_rust_project_of_each_hook_builds_and_passes_its_tests_as_generated() {
    if !require(Need::Program("cargo")) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let toolchain = std::fs::read_to_string(repository().join("rust-toolchain.toml")).unwrap();
    let toolchain = toolchain.split('"').nth(1).unwrap();
    let target = hookrun_program().ancestors().nth(2).unwrap().join("documents");
    let sdk = repository().join("plugin-sdk");
    for hook in ["post-build", "diff", "builder-selection"] {
        let name = format!("my-{hook}");
        let sdk = sdk.to_str().unwrap();
        hookrun(directory.path(), &["new", &name, "--lang", "rust", "--hook", hook, "--sdk", sdk])
            .expect_success();
        let project = directory.path().join(&name);
        // Dependencies are resolved as in the repository, from what was downloaded for it, and
        // compiled once for all runs of this test.
        std::fs::copy(repository().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
        std::fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&target, project.join("target")).unwrap();
        let cargo = |arguments: &[&str]| {
            let mut cargo = Command::new("cargo");
            cargo
                .current_dir(&project)
                .args(arguments)
                .env("RUSTUP_TOOLCHAIN", toolchain)
                .env("CARGO_NET_OFFLINE", "true")
                .env_remove("CARGO_TARGET_DIR")
                .env_remove("CARGO_MANIFEST_DIR");
            Ran::of(&mut cargo).expect_success();
        };
        cargo(&["test"]);
        cargo(&["build", "--release", "--target", "wasm32-wasip2"]);
        let wasm = format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
        let ran = hookrun(&project, &["test", &wasm, "scenarios/first.toml", "--deny", "all"])
            .expect_success();
        assert!(ran.stdout.contains("passed: 1 of 1"), "{}", ran.stdout);
        assert!(ran.stdout.contains("hookrun.toml:3"), "{}", ran.stdout);
    }
}

#[test]
fn a_project_of_another_language_has_its_world_and_metadata() {
    let directory = tempfile::tempdir().unwrap();
    for lang in ["javascript", "python"] {
        let name = format!("my-{lang}");
        hookrun(directory.path(), &["new", &name, "--lang", lang, "--hook", "diff"])
            .expect_success();
        let read =
            |path: &str| std::fs::read_to_string(directory.path().join(&name).join(path)).unwrap();
        assert!(read("wit/world.wit").contains("export hookrun:diff/diff@0.1.0;"));
        assert!(read("wit/deps/hookrun-host/host.wit").contains("package hookrun:host@0.1.0;"));
        assert!(read("plugin.toml").contains("hooks = [\"diff\"]"));
        assert!(!read("README.md").contains("{{"));
        let again = hookrun(directory.path(), &["new", &name, "--lang", lang]).expect_exit(2);
        assert!(again.stderr.contains("exists already"), "{}", again.stderr);
    }
    let wrong = hookrun(directory.path(), &["new", "My_Plugin"]).expect_exit(2);
    assert!(wrong.stderr.contains("is not a name for a plugin"), "{}", wrong.stderr);
}

#[test]
fn a_packed_component_has_the_metadata_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        std::fs::write(directory.path().join(name), content).unwrap();
    };
    file("x.wasm", &crafted().says("packed").build());
    file(
        "plugin.toml",
        b"name = \"renamed\"\nversion = \"2.0.0\"\nhooks = [\"post-build\"]\nfuture = true\n[config-schema]\ntype = \"object\"\n",
    );
    hookrun(directory.path(), &["pack", "x.wasm", "--output", "y.wasm"]).expect_success();
    let ran = hookrun(directory.path(), &["test", "y.wasm"]).expect_success();
    assert!(
        ran.stdout.contains("renamed 2.0.0") && ran.stdout.contains("packed"),
        "{}",
        ran.stdout
    );
    // Packing again replaces the metadata.
    hookrun(directory.path(), &["pack", "y.wasm"]).expect_success();
    let lengths = ["x.wasm", "y.wasm"].map(|name| directory.path().join(name));
    assert!(lengths[1].metadata().unwrap().len() < lengths[0].metadata().unwrap().len() + 200);
    file("plugin.toml", b"name = \"x\"\nversion = \"1\"\nhooks = [\"postbuild\"]\n");
    let wrong = hookrun(directory.path(), &["pack", "x.wasm"]).expect_exit(3);
    assert!(wrong.stderr.contains("plugin.toml: line 3: unknown variant"), "{}", wrong.stderr);
}
