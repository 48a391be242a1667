//! `hookrun builders` and `doctor` with real Nix: machines that are stores of the scene, one that
//! refuses connections, and one that claims features that it does not have.

use hookrun_tests::lab::{ConfigFile, Need, Ran, Scene, Script, minor_version, require};

/// A machine that refuses: the port is reserved (RFC 6335: tcpmux) and nothing listens on it.
const REFUSES: &str = "ssh://127.0.0.1 - - 4 100";

fn scene() -> Scene {
    Scene::new().variable("NIX_SSHOPTS", "-p 1").config(&ConfigFile::new())
}

/// Returns the standard output with the directory of the scene replaced by a word.
fn shown(scene: &Scene, ran: &Ran) -> String {
    ran.stdout.replace(&scene.dir().display().to_string(), "SCENE")
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.account()))
}

#[test]
fn check_lists_what_each_machine_lacks() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene().builder("plain", 2, 1.0);
    let plain = scene.builder_store("plain").display().to_string();
    // The machine is the local one, so it has the local system and features.
    let claims = format!(
        "ssh://localhost?remote-store={plain} x86_64-linux,aarch64-linux - 1 1 benchmark,quantum"
    );
    let scene = scene.machine(&claims).machine(REFUSES);
    let ran = scene.hookrun(&["builders", "check", "--format", "json"]).expect_exit(1);
    let checked = json(&ran);
    let findings = |index: usize| -> Vec<String> {
        let findings = checked[index]["findings"].as_array().unwrap().clone();
        findings
            .iter()
            .map(|finding| {
                format!(
                    "{} {}",
                    if finding["problem"] == true { "!" } else { "-" },
                    finding["text"].as_str().unwrap()
                )
            })
            .collect()
    };
    let has = |index: usize, mark: &str, words: &str| {
        let all = findings(index);
        assert!(
            all.iter().any(|text| text.starts_with(mark) && text.contains(words)),
            "{words}: {all:#?}"
        );
    };
    has(0, "-", "answers in ");
    has(0, "-", "builds for x86_64-linux");
    assert!(findings(0).iter().all(|text| text.starts_with('-')), "{:#?}", findings(0));
    has(1, "!", "claims quantum, but has ");
    has(1, "-", "builds for x86_64-linux with benchmark");
    has(1, "!", "claims aarch64-linux, but is x86_64-linux");
    has(2, "!", "cannot be reached: ");
    has(2, "!", "try `ssh root@127.0.0.1 nix-store --version`");
}

#[test]
fn list_explain_trace_and_render_show_the_builds_of_each_machine() {
    if !require(Need::Root) {
        return;
    }
    let scene = scene()
        .nix_conf("post-build-hook", "")
        .builder("slow", 1, 1.0)
        .builder("fast", 2, 4.0)
        .machine(REFUSES)
        .derivation("alpha", Script::text("a"))
        .derivation("omega", Script::naming(["alpha"]));
    scene
        .hookrun(&["builders", "explain", "last"])
        .expect_exit(1)
        .expect_stderr("no decision about `last` is recorded");
    scene.build_with("omega", &["--max-jobs", "0"]).expect_success();

    let rows = json(&scene.hookrun(&["builders", "list", "--format", "json"]).expect_success());
    let row = |index: usize, key: &str| rows[index][key].clone();
    assert_eq!((row(0, "slots"), row(1, "slots"), row(1, "load")), (1.into(), 2.into(), 0.into()));
    assert_eq!(row(1, "built"), 2, "{rows:#}");
    assert!(
        row(2, "failures").as_u64().unwrap() > 0 && row(2, "last-error").is_string(),
        "{rows:#}"
    );
    let text = shown(&scene, &scene.hookrun(&["builders", "list"]).expect_success());
    assert!(text.contains("remote-store=SCENE/builders/fast"), "{text}");

    let text = shown(&scene, &scene.hookrun(&["builders", "explain", "alpha"]).expect_success());
    assert!(
        text.contains("decided: machines")
            && text.contains("taken: ")
            && text.contains("built on "),
        "{text}"
    );
    for machine in ["builders/slow", "builders/fast", "ssh://127.0.0.1"] {
        assert!(text.contains(machine), "{machine}: {text}");
    }
    scene.hookrun(&["builders", "explain", "last"]).expect_success().expect_stdout("omega");

    let trace = scene.hookrun(&["builders", "trace"]).expect_success().stdout;
    let lines: Vec<serde_json::Value> =
        trace.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let built: Vec<&serde_json::Value> =
        lines.iter().filter(|line| line["type"] == "drv").collect();
    assert_eq!(built.len(), 2, "{trace}");
    assert_eq!(built[1]["deps"], serde_json::json!([0]), "{trace}");
    std::fs::write(scene.path("trace.jsonl"), &trace).unwrap();
    let trace_file = scene.path("trace.jsonl").display().to_string();
    scene
        .hookrun(&["builders", "simulate", "--trace", &trace_file])
        .expect_success()
        .expect_stdout("bundled:speed-factor");

    let rendered = shown(&scene, &scene.hookrun(&["builders", "render"]).expect_success());
    let machines: Vec<&str> = rendered.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(
        machines[0].contains("builders/fast") && !machines.concat().contains("127.0.0.1"),
        "{rendered}"
    );
    assert!(rendered.contains("# omitted: "), "{rendered}");
}

#[test]
fn render_refuses_to_overwrite_its_source() {
    let scene = scene();
    let all = scene.path("machines.all");
    std::fs::write(&all, "ssh://a - - 2 1.5\nssh://b - - 2 4\n").unwrap();
    let (all, out) = (all.display().to_string(), scene.path("machines").display().to_string());
    scene.hookrun(&["builders", "render", "--machines", &all, "--output", &out]).expect_success();
    let text = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines[0].starts_with("ssh://b ") && lines[1].starts_with("ssh://a "), "{text}");
    // Before 2.20 Nix only accepts integers.
    assert_eq!(lines.iter().all(|line| !line.contains('.')), minor_version() < 20, "{text}");
    scene
        .hookrun(&["builders", "render", "--machines", &all, "--output", &all])
        .expect_exit(2)
        .expect_stderr("omitted machines would be lost");
}

#[test]
fn doctor_finds_broken_settings_and_no_fault_in_the_lab() {
    let scene = scene().builder("one", 1, 1.0);
    let findings = |ran: &Ran| -> Vec<String> {
        let report = json(ran);
        let line = |finding: &serde_json::Value| {
            format!(
                "{} {}: {}",
                finding["level"].as_str().unwrap(),
                finding["about"].as_str().unwrap(),
                finding["text"].as_str().unwrap()
            )
        };
        report["findings"].as_array().unwrap().iter().map(line).collect()
    };
    let ran = scene.hookrun(&["doctor", "--format", "json"]);
    let all = findings(&ran);
    let has = |all: &[String], begin: &str| {
        assert!(all.iter().any(|line| line.starts_with(begin)), "{begin}: {all:#?}");
    };
    has(&all, "good Nix: nix (Nix) ");
    has(&all, "good post-build-hook: ");
    has(&all, "good diff-hook: ");
    has(&all, "good build-hook: ");
    has(&all, "good builders: 1 machine");

    let broken = scene
        .nix_conf("post-build-hook", "@scene@/missing/hookrun-post-build")
        .nix_conf("run-diff-hook", "false")
        .nix_conf("builders", "ssh://m - - many");
    let ran = broken.hookrun(&["doctor", "--format", "json"]).expect_exit(1);
    let all = findings(&ran);
    let missing = broken.path("missing/hookrun-post-build");
    has(
        &all,
        &format!(
            "problem post-build-hook: it is `{}`, but there is no such file, so every build fails",
            missing.display()
        ),
    );
    has(&all, "problem diff-hook: ");
    has(&all, "problem builders: ");
    let mut without = broken.hookrun_command(&["doctor"]);
    Ran::of(without.env("PATH", broken.path("missing")))
        .expect_exit(4)
        .expect_stdout("there is no program `nix` in PATH");
}
