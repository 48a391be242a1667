//! Tests of [`super`] with the facts of several machines.

use super::*;
use hookrun_queue::worker::{Running, WorkerState};

const DIRECTORY: &str = "/usr/lib/hookrun";

fn nix(version_output: &str) -> NixFacts {
    let (flavour, version) = hookrun_nix::installed::identify(version_output).unwrap();
    let link = |name: &str| ConfiguredHook::Hookrun(format!("{DIRECTORY}/{name}"));
    NixFacts {
        version_output: version_output.to_owned(),
        flavour,
        version,
        post_build_hook: link("hookrun-post-build"),
        faster_post_build_hook: None,
        diff_hook: link("hookrun-diff"),
        faster_diff_hook: None,
        run_diff_hook: true,
        build_hook: link("hookrun-build-hook"),
        machines: 2,
        machine_warnings: Vec::new(),
        fractions: false,
        build_users: Some(("nixbld".to_owned(), Some(32))),
    }
}

fn facts(nix: NixFacts) -> Facts {
    Facts {
        root: true,
        nix: Ok(nix),
        nix_conf: "/etc/nix/nix.conf".into(),
        build_hook_in_file: Some(format!("{DIRECTORY}/hookrun-build-hook")),
        daemon_is_older: false,
        config_error: None,
        config_is_embedded: false,
        stalled: None,
        secrets: Vec::new(),
        config: "/etc/hookrun/hookrun.toml".into(),
        start: Start::Service,
        worker: Some(Running {
            pid: 7,
            said: Some(WorkerState {
                version: "0.1.0".to_owned(),
                priority: "low".to_owned(),
                ..WorkerState::default()
            }),
            is_replaced: false,
        }),
        waiter_runs: false,
        service: Some("active".to_owned()),
        sandbox: Vec::new(),
        state: "/var/lib/hookrun".into(),
        spool: Vec::new(),
        links: DIRECTORY.into(),
    }
}

fn told(facts: &Facts) -> String {
    let line = |Finding { level, about, text }: &Finding| format!("{level:?} {about}: {text}\n");
    examine(facts).iter().map(line).collect()
}

/// Returns the findings that are not good, as text.
fn bad(facts: &Facts) -> String {
    let line = |Finding { level, about, text }: Finding| {
        (level != Level::Good).then(|| format!("{level:?} {about}: {text}\n"))
    };
    examine(facts).into_iter().filter_map(line).collect()
}

#[test]
fn the_small_program_is_advised_where_it_is_installed() {
    let mut nix = nix("nix (Nix) 2.8.0");
    nix.faster_diff_hook = Some("run `ln -sfn /a/hookrun-hook /a/hookrun-diff`".to_owned());
    insta::assert_snapshot!(
        bad(&facts(nix)).lines().last().unwrap(),
        @"Note diff-hook: hookrun-hook is faster as this hook; run `ln -sfn /a/hookrun-hook /a/hookrun-diff`"
    );
}

#[test]
fn a_correct_installation_has_no_problems() {
    insta::assert_snapshot!(told(&facts(nix("nix (Nix) 2.34.8"))));
}

#[test]
fn quirks_of_each_nix_version_are_reported() {
    let unset = |version_output: &str| NixFacts {
        build_hook: ConfiguredHook::Unset,
        ..nix(version_output)
    };
    let lines = [
        ("2.8.0", bad(&facts(nix("nix (Nix) 2.8.0")))),
        ("2.26, line in nix.conf", bad(&facts(unset("nix (Nix) 2.26.3")))),
        (
            "2.26, no line",
            bad(&Facts { build_hook_in_file: None, ..facts(unset("nix (Nix) 2.26.3")) }),
        ),
        ("2.26, through the environment", bad(&facts(nix("nix (Nix) 2.26.3")))),
        ("2.34, overridden", bad(&facts(unset("nix (Nix) 2.34.8")))),
        ("Lix 2.94", bad(&facts(nix("nix (Lix, like Nix) 2.94.0")))),
        (
            "Lix 2.94, not set",
            bad(&Facts { build_hook_in_file: None, ..facts(unset("nix (Lix, like Nix) 2.94.0")) }),
        ),
        (
            "Lix 2.93, fractions",
            bad(&Facts {
                build_hook_in_file: None,
                ..facts(NixFacts { fractions: true, ..unset("nix (Lix, like Nix) 2.93.3") })
            }),
        ),
    ];
    let text: Vec<String> = lines.iter().map(|(what, told)| format!("{what}\n{told}")).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn missing_settings_are_reported_with_the_line_to_write() {
    let bare = NixFacts {
        post_build_hook: ConfiguredHook::Unset,
        diff_hook: ConfiguredHook::Unset,
        run_diff_hook: false,
        build_hook: ConfiguredHook::Unset,
        machines: 0,
        build_users: Some(("nixbld".to_owned(), Some(0))),
        ..nix("nix (Nix) 2.34.8")
    };
    let half = NixFacts {
        post_build_hook: ConfiguredHook::Other("/etc/nix/upload.sh".to_owned()),
        run_diff_hook: false,
        build_hook: ConfiguredHook::Unusable(
            "/usr/lib/hookrun-build-hook".to_owned(),
            "there is no such file".to_owned(),
        ),
        machine_warnings: vec![
            "/etc/nix/machines:3: column 4 (maximum number of jobs): `x` is not a number of jobs"
                .to_owned(),
        ],
        build_users: Some(("nixbld".to_owned(), None)),
        ..nix("nix (Nix) 2.34.8")
    };
    let odd = NixFacts {
        diff_hook: ConfiguredHook::Unset,
        machines: 0,
        build_users: None,
        ..nix("nix (Nix) 2.18.1")
    };
    let broken = Facts {
        root: false,
        daemon_is_older: true,
        config_error: Some("/etc/hookrun/hookrun.toml:3: unknown key `pluggins`; did you mean `plugins`?".to_owned()),
        worker: None,
        service: Some("failed".to_owned()),
        sandbox: vec!["there is no user `hookrun`; create it with `useradd --system --no-create-home hookrun`".to_owned()],
        spool: vec![
            "/var/lib/hookrun has mode 700, so build users cannot reach the spool; `chmod 755 /var/lib/hookrun`".to_owned(),
        ],
        ..facts(odd)
    };
    let none = Facts {
        nix: Err("there is no program `nix` in PATH".to_owned()),
        start: Start::None,
        worker: None,
        ..facts(nix("nix (Nix) 2.8.0"))
    };
    let mut upgraded = facts(nix("nix (Nix) 2.8.0"));
    upgraded.worker.as_mut().unwrap().is_replaced = true;
    let idle = Facts { start: Start::Spawn, worker: None, ..facts(nix("nix (Nix) 2.8.0")) };
    let lines = [
        ("nothing set", bad(&Facts { build_hook_in_file: None, ..facts(bare) })),
        ("half", bad(&facts(half))),
        ("broken", bad(&broken)),
        ("no Nix", bad(&none)),
        ("upgraded", told(&upgraded)),
        ("idle", told(&idle)),
    ];
    let text: Vec<String> = lines.iter().map(|(what, told)| format!("{what}\n{told}")).collect();
    insta::assert_snapshot!(text.join("\n"));
}
