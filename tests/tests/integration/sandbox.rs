//! The sandbox with real guests: the results of a good guest, and the outcome of each fault of a
//! bad one.

use std::collections::BTreeMap;

use hookrun_builders::{Action, Candidate, LocalMachine, Machine};
use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::compiled_cache::Origin;
use hookrun_host::{Compiler, Host, LinkedPlugin};
use hookrun_nix::event::{Diff, Event, HookEvent, HookKind, Output, PostBuild};
use hookrun_nix::evidence::{Difference, Evidence};
use hookrun_nix::outcome::{Outcome, RunReport};
use hookrun_tests::lab::{PluginTable, toml};
use hookrun_tests::sandbox::Sandbox;

const DRV: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12.drv";
const OUT: &str = "/nix/store/10bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12";

/// Loads the plugin with durable state.
fn load(sandbox: &Sandbox, table: PluginTable) -> (LinkedPlugin, Services) {
    let config = sandbox.config(table);
    let plugin = sandbox.host.load(&config.plugins["x"], &config).unwrap();
    (plugin, Services::new(&config, &sandbox.dirs))
}

/// The guest `good` with durable state.
fn good() -> PluginTable {
    PluginTable::guest("good").grant("state", true)
}

/// The guest `faulty` with this fault.
fn faulty(fault: &str) -> PluginTable {
    PluginTable::guest("faulty").config(toml! { fault = fault })
}

async fn run(sandbox: &Sandbox, table: PluginTable) -> RunReport {
    let (plugin, services) = load(sandbox, table);
    plugin.run_event(&services, &built(), 1).await
}

fn built() -> Event {
    let outputs = vec![Output { name: "out".to_owned(), path: OUT.to_owned() }];
    Event::now(HookEvent::PostBuild(PostBuild { drv_path: DRV.to_owned(), outputs }))
}

fn differs() -> Event {
    let difference = Difference {
        path: "bin/hello".to_owned(),
        kind: "content".to_owned(),
        previous: "00".to_owned(),
        current: "01".to_owned(),
        offset: Some(7),
        details: Vec::new(),
    };
    let evidence = Evidence { differences: vec![difference], ..Evidence::default() };
    Event::now(HookEvent::Diff(Diff {
        drv_path: DRV.to_owned(),
        output: Output { name: "out".to_owned(), path: OUT.to_owned() },
        previous: OUT.to_owned(),
        current: format!("{OUT}.check"),
        evidence,
    }))
}

fn details(report: &RunReport) -> BTreeMap<&str, &str> {
    match &report.outcome {
        Outcome::Done { details, .. } => {
            details.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
        }
        other => panic!("expected a result: {other:?}"),
    }
}

#[tokio::test]
async fn a_good_guest_serves_all_hooks() {
    let sandbox = Sandbox::new();
    let (plugin, services) = load(&sandbox, good().config(toml! { greeting = "hi" }));
    assert_eq!(plugin.hooks(), HookKind::ALL);
    assert_eq!(plugin.metadata().name, "guest-good");
    assert_eq!(plugin.origin(), &Origin::Compiled);

    let report = plugin.run_event(&services, &built(), 1).await;
    assert_eq!(report.outcome.message(), "hi hello-2.12");
    assert_eq!(details(&report)["runs"], "1");
    let logged: Vec<(&str, &str)> =
        report.log.iter().map(|line| (line.level.as_str(), line.message.as_str())).collect();
    assert_eq!(logged, [("info", "hi"), ("info", "counted hello-2.12")]);
    assert_eq!(report.usage.host_calls, 4);
    assert_eq!(report.usage.calls["state.set"], 1);
    assert!(report.usage.memory > 0 && report.usage.host_bytes > 0);

    let report = plugin.run_event(&services, &differs(), 1).await;
    assert_eq!(
        (details(&report)["runs"], details(&report)["differences"]),
        ("2", "1"),
        "state lasts from run to run"
    );

    let candidate = Candidate {
        drv_path: DRV.to_owned(),
        name: "hello-2.12".to_owned(),
        system: "x86_64-linux".to_owned(),
        ..Candidate::default()
    };
    let machine = |uri: &str| Machine { uri: uri.into(), speed_factor: 1.5, ..Machine::default() };
    let machines = [machine("ssh://a"), machine("ssh://b")];
    let (decision, report) =
        plugin.select(&services, &candidate, &machines, &LocalMachine::default()).await;
    assert_eq!(
        decision.unwrap().action,
        Action::Machines(vec!["ssh://a".into(), "ssh://b".into()])
    );
    assert_eq!(report.outcome.message(), "as offered");

    let config = sandbox.config(good());
    let again = Host::new(&sandbox.dirs, Compiler::InProcess).load(&config.plugins["x"], &config);
    assert_eq!(
        again.unwrap().origin(),
        &Origin::Mapped,
        "another process maps what this one compiled"
    );
}

#[tokio::test]
async fn a_failed_run_returns_its_failure_and_keeps_its_state() {
    let sandbox = Sandbox::new();
    let report = run(&sandbox, good().config(toml! { fail = "transient" })).await;
    let expected = Outcome::Failed {
        message: "told to fail for a while".to_owned(),
        transient: true,
        retry_after_ms: Some(7000),
    };
    assert_eq!(report.outcome, expected);
    let (plugin, services) = load(&sandbox, good());
    assert_eq!(details(&plugin.run_event(&services, &built(), 2).await)["runs"], "2");
}

#[tokio::test]
async fn a_trap_discards_the_state_of_its_run() {
    let sandbox = Sandbox::new();
    let report = run(&sandbox, faulty("state-then-trap").grant("state", true)).await;
    assert_eq!(report.outcome.class().as_str(), "trapped");
    assert!(
        report.log.iter().any(|line| line.message.contains("told to trap")),
        "{:?}",
        report.log
    );
    assert!(!sandbox.dirs.plugin_state().join("x.sqlite").exists());
}

#[tokio::test]
async fn messages_of_traps_name_the_plugin() {
    let sandbox = Sandbox::new();
    let report = run(&sandbox, faulty("trap")).await;
    assert!(
        report.outcome.message().starts_with("plugin `x` panicked at ")
            && report.outcome.message().ends_with(": told to trap"),
        "{:?}",
        report.outcome
    );
    let report = run(&sandbox, faulty("exit")).await;
    assert!(
        report.outcome.message().contains("called exit(1) instead of returning"),
        "{:?}",
        report.outcome
    );
}

#[tokio::test]
async fn calls_without_a_grant_are_refused_with_the_line_to_write() {
    let sandbox = Sandbox::new();
    let report = run(&sandbox, faulty("state")).await;
    assert_eq!(
        report.outcome.message(),
        format!(
            "plugin `x` has no grant for state; write `state = true` under [plugins.x.grant] in {}",
            sandbox.dirs.config.display()
        )
    );
    assert_eq!(report.usage.denied["state.set"], 1);
}

#[test]
fn a_plugin_that_does_not_load_names_the_line_to_write() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.refused("good", ""), @r#"ROOT/hookrun.toml:1: plugin `x`: it wants `state` and has no grant for that; write `state = true` under [plugins.x.grant] in ROOT/hookrun.toml (there is no such table yet)"#);
    insta::assert_snapshot!(sandbox.refused("good", "grant = { state = true }\nconfig = { greetin = 'hi' }"), @r#"ROOT/hookrun.toml:4: plugin `x`: config.greetin: unknown key; change or remove it (known keys: fail, greeting)"#);
    insta::assert_snapshot!(sandbox.refused("good", "grant = { state = true }\n[plugins.x.config]\nfail = 1"), @r#"ROOT/hookrun.toml:5: plugin `x`: config.fail: 1 is not one of "transient", "permanent"; change it"#);

    let config =
        Config::parse(&sandbox.dirs.config, "[plugins.x]\nsource = 'none.wasm'\n").unwrap();
    let message = sandbox.host.open(&config.plugins["x"], &config).unwrap_err().to_string();
    insta::assert_snapshot!(message.replace(&sandbox.dirs.config.parent().unwrap().display().to_string(), "ROOT"), @r#"ROOT/hookrun.toml:2: plugin `x`: there is no file ROOT/none.wasm; correct `source`"#);
}
