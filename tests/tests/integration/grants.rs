//! Grants: a plugin may use what its metadata asks for and the configuration grants.

use hookrun_tests::lab::{PluginTable, toml};
use hookrun_tests::sandbox::Sandbox;

/// A guest that uses each capability once. It does not load without a scope of the store; all other
/// capabilities are optional.
fn uses_all() -> PluginTable {
    PluginTable::guest("greedy")
        .config(toml! { want = "use-all" to = "root@localhost" })
        .grant("nix-store", "outputs")
}

/// Runs the guest and returns its results, a line for each capability.
async fn results(sandbox: &Sandbox, table: PluginTable) -> String {
    let report = sandbox.run(table).await;
    sandbox.shown(report.outcome.message())
}

#[tokio::test]
async fn each_capability_needs_its_own_grant() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!("nothing_but_the_store", results(&sandbox, uses_all()).await);
    let capabilities = ["state", "object-store", "signing", "mail"];
    let grant = |table: PluginTable, capability: &str| match capability {
        "object-store" => table.grant(capability, ["cache"]),
        "signing" => table.grant(capability, ["cache.example.org-1"]),
        "mail" => table.grant(capability, ["default"]),
        _ => table.grant(capability, true),
    };
    for capability in capabilities {
        let results = results(&sandbox, grant(uses_all(), capability)).await;
        let allowed: Vec<&str> = results.lines().filter(|line| line.ends_with(": ok")).collect();
        let granted = format!("{capability}: ok");
        assert!(
            allowed.len() == 2
                && allowed.contains(&"nix-store: ok")
                && allowed.contains(&granted.as_str()),
            "{results}"
        );
    }
    let results = results(&sandbox, capabilities.into_iter().fold(uses_all(), grant)).await;
    assert_eq!(results.lines().filter(|line| line.ends_with(": ok")).count(), 5, "{results}");
}

/// The plugin imports the capability and has a grant, but its metadata does not ask for it. The
/// call returns an error and the run goes on.
#[tokio::test]
async fn a_call_of_a_capability_that_the_metadata_does_not_ask_for_is_refused() {
    let sandbox = Sandbox::new();
    let plugin = PluginTable::guest("faulty")
        .hooks(["post-build"])
        .config(toml! { fault = "unwanted" })
        .grant("mail", ["default"]);
    let report = sandbox.run(plugin).await;
    assert_eq!(report.outcome.class().as_str(), "permanent");
    insta::assert_snapshot!(report.outcome.message(), @"plugin `x` may not use `mail`: its metadata does not ask for it; its author must add `mail` to the plugin's `wants`");
    assert_eq!(report.usage.denied.get("mail.send"), Some(&1));
}

#[test]
fn a_plugin_without_a_required_grant_does_not_load() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.refused("greedy", ""), @r#"ROOT/hookrun.toml:1: plugin `x`: it wants `nix-store` and has no grant for that; write `nix-store = "outputs"` under [plugins.x.grant] in ROOT/hookrun.toml (there is no such table yet)"#);
    insta::assert_snapshot!(sandbox.refused("greedy", "[plugins.x.grant]\nstate = true"), @r#"ROOT/hookrun.toml:3: plugin `x`: it wants `nix-store` and has no grant for that; write `nix-store = "outputs"` under [plugins.x.grant] in ROOT/hookrun.toml:3"#);
    insta::assert_snapshot!(sandbox.refused("good", "hooks = ['post-build']\ngrant = { nix-store = 'closure' }"), @r#"ROOT/hookrun.toml:4: plugin `x`: it wants `state` and has no grant for that; write `state = true` under [plugins.x.grant] in ROOT/hookrun.toml:4"#);
}

#[test]
fn a_policy_that_is_granted_more_than_state_does_not_load() {
    let sandbox = Sandbox::new();
    let granted = r#"grant = { state = true, nix-store = "closure", mail = ["default"] }"#;
    insta::assert_snapshot!(sandbox.refused("good", granted), @r#"ROOT/hookrun.toml:3: plugin `x`: it serves `builder-selection`, where `state` is all that can be granted; write `hooks = ["builder-selection"]` and remove `nix-store`, `mail` under [plugins.x.grant], and give `post-build`, `diff` a table with a name of its own"#);
    insta::assert_snapshot!(sandbox.refused("good", &format!("hooks = ['builder-selection']\n{granted}")), @"ROOT/hookrun.toml:4: plugin `x`: it serves `builder-selection`, where `state` is all that can be granted; remove `nix-store`, `mail` under [plugins.x.grant]");
}
