//! Two keys: a plugin has what its metadata wants and the configuration grants; seen from inside a
//! guest and from outside.

use hookrun_tests::sandbox::Sandbox;

const USE_ALL: &str = "config = { want = \"use-all\", to = \"root@localhost\" }\n";

/// What a guest is told that uses each capability once, under these grants.
async fn told(sandbox: &Sandbox, grant: &str) -> String {
    let report = sandbox.run("greedy", &format!("{USE_ALL}[plugins.x.grant]\n{grant}\n")).await;
    sandbox.shown(report.outcome.message())
}

#[tokio::test]
async fn each_capability_needs_its_own_line() {
    let sandbox = Sandbox::new();
    // Without a scope of the store this guest does not load; all the rest is optional to it.
    let store = "nix-store = \"outputs\"";
    insta::assert_snapshot!("nothing_but_the_store", told(&sandbox, store).await);
    let lines = [
        "state = true",
        "object-store = [\"cache\"]",
        "signing = [\"cache.example.org-1\"]",
        "mail = [\"default\"]",
    ];
    for line in lines {
        let told = told(&sandbox, &format!("{store}\n{line}")).await;
        let allowed: Vec<&str> = told.lines().filter(|line| line.ends_with(": ok")).collect();
        let granted = format!("{}: ok", line.split_once(' ').unwrap().0);
        assert!(
            allowed.len() == 2
                && allowed.contains(&"nix-store: ok")
                && allowed.contains(&granted.as_str()),
            "{told}"
        );
    }
    let told = told(&sandbox, &format!("{store}\n{}", lines.join("\n"))).await;
    assert_eq!(told.lines().filter(|line| line.ends_with(": ok")).count(), 5, "{told}");
}

/// Imported, and even granted, but not wanted: a typed refusal at the call, and the run goes on.
#[tokio::test]
async fn what_the_metadata_does_not_want_is_refused_in_the_call() {
    let sandbox = Sandbox::new();
    let report = sandbox
        .run("faulty", "hooks = [\"post-build\"]\nconfig = { fault = \"unwanted\" }\ngrant = { mail = [\"default\"] }")
        .await;
    assert_eq!(report.outcome.class().as_str(), "permanent");
    insta::assert_snapshot!(report.outcome.message(), @"plugin `x` may not use `mail`: its metadata does not ask for it; its author must add `mail` to the plugin's `wants`");
    assert_eq!(report.usage.denied.get("mail.send"), Some(&1));
}

/// Wanted, but not granted: it does not load, and says what to write and where.
#[test]
fn what_is_wanted_and_not_granted_refuses_the_plugin() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.refused("greedy", ""), @r#"ROOT/hookrun.toml:1: plugin `x`: it wants `nix-store` and has no grant for that; write `nix-store = "outputs"` under [plugins.x.grant] in ROOT/hookrun.toml (there is no such table yet)"#);
    insta::assert_snapshot!(sandbox.refused("greedy", "[plugins.x.grant]\nstate = true"), @r#"ROOT/hookrun.toml:3: plugin `x`: it wants `nix-store` and has no grant for that; write `nix-store = "outputs"` under [plugins.x.grant] in ROOT/hookrun.toml:3"#);
    insta::assert_snapshot!(sandbox.refused("good", "hooks = [\"post-build\"]\ngrant = { nix-store = \"closure\" }"), @r#"ROOT/hookrun.toml:4: plugin `x`: it wants `state` and has no grant for that; write `state = true` under [plugins.x.grant] in ROOT/hookrun.toml:4"#);
}

/// A policy answers from what it is asked: it gets `log`, `config` and `state`, and a grant of more
/// is a mistake.
#[test]
fn a_policy_that_is_granted_more_than_state_does_not_load() {
    let sandbox = Sandbox::new();
    let granted = "grant = { state = true, nix-store = \"closure\", mail = [\"default\"] }";
    insta::assert_snapshot!(sandbox.refused("good", granted), @r#"ROOT/hookrun.toml:3: plugin `x`: it serves `builder-selection`, where `state` is all that can be granted; write `hooks = ["builder-selection"]` and remove `nix-store`, `mail` under [plugins.x.grant], and give `post-build`, `diff` a table with a name of its own"#);
    insta::assert_snapshot!(sandbox.refused("good", &format!("hooks = [\"builder-selection\"]\n{granted}")), @"ROOT/hookrun.toml:4: plugin `x`: it serves `builder-selection`, where `state` is all that can be granted; remove `nix-store`, `mail` under [plugins.x.grant]");
}
