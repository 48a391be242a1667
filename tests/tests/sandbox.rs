//! The sandbox with real guests: what a good one does, and where each fault of a bad one ends.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "what goes wrong has to fail the test")]

use std::collections::BTreeMap;

use hookrun::builders::{Action, Candidate, LocalMachine, Machine};
use hookrun::capability::Services;
use hookrun::config::Config;
use hookrun::dirs::Dirs;
use hookrun::event::{Diff, Event, HookEvent, HookKind, Output, PostBuild};
use hookrun::evidence::{Difference, Evidence};
use hookrun::outcome::{Outcome, RunReport};
use hookrun::plugin::artifact::Origin;
use hookrun::plugin::{Artifact, Host, LinkedPlugin};
use hookrun_tests::guests::guest;

const DRV: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12.drv";
const OUT: &str = "/nix/store/10bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12";

struct Scene {
    _directory: tempfile::TempDir,
    dirs: Dirs,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        let host = Host::new(&dirs);
        Self { _directory: directory, dirs, host }
    }

    /// A configuration with the plugin `x` from a guest; `rest` is the rest of its table.
    fn config(&self, name: &str, rest: &str) -> Config {
        let source = guest(name).unwrap();
        let text = format!("[plugins.x]\nsource = \"{}\"\n{rest}\n[mail.default]\n", source.display());
        Config::parse(&self.dirs.config, &text).unwrap()
    }

    fn load(&self, name: &str, rest: &str) -> (LinkedPlugin, Services) {
        let config = self.config(name, rest);
        let plugin = self.host.load(&config.plugins["x"], &config).unwrap();
        (plugin, Services::new(&config, &self.dirs))
    }

    /// The message of a plugin that does not load, with the guest's and the scene's directories left out.
    fn refused(&self, name: &str, rest: &str) -> String {
        let config = self.config(name, rest);
        let message = Artifact::open(&config.plugins["x"], &config).unwrap_err().to_string();
        let root = self.dirs.config.parent().unwrap().display().to_string();
        message.replace(&root, "ROOT").replace(&guest(name).unwrap().display().to_string(), "GUEST")
    }

    /// What becomes of the fault `fault`, with these limits.
    async fn fault(&self, fault: &str, rest: &str) -> RunReport {
        let (plugin, services) = self.load("faulty", &format!("config = {{ fault = \"{fault}\" }}\n{rest}"));
        plugin.run_event(&services, &built(), 1).await
    }
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

fn message_of_limit(report: &RunReport, key: &str) -> String {
    match &report.outcome {
        Outcome::LimitReached { limit, message } if limit == key => message.clone(),
        other => panic!("expected the limit {key}: {other:?}"),
    }
}

fn details(report: &RunReport) -> BTreeMap<&str, &str> {
    match &report.outcome {
        Outcome::Done { details, .. } => details.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        other => panic!("expected a result: {other:?}"),
    }
}

#[tokio::test]
async fn a_good_guest_serves_all_hooks() {
    let scene = Scene::new();
    let (plugin, services) = scene.load("good", "config = { greeting = \"hi\" }\ngrant = { state = true }");
    assert_eq!(plugin.hooks(), HookKind::ALL);
    assert_eq!(plugin.metadata().name, "guest-good");
    assert_eq!(plugin.origin(), &Origin::Compiled);

    let report = plugin.run_event(&services, &built(), 1).await;
    assert_eq!(report.outcome.message(), "hi hello-2.12");
    assert_eq!(details(&report)["runs"], "1");
    let logged: Vec<(&str, &str)> = report.log.iter().map(|line| (line.level.as_str(), line.message.as_str())).collect();
    assert_eq!(logged, [("info", "hi"), ("info", "counted hello-2.12")]);
    assert_eq!(report.usage.host_calls, 4);
    assert_eq!(report.usage.calls["state.set"], 1);
    assert!(report.usage.memory > 0 && report.usage.host_bytes > 0);

    let report = plugin.run_event(&services, &differs(), 1).await;
    assert_eq!((details(&report)["runs"], details(&report)["differences"]), ("2", "1"), "state lasts from run to run");

    let candidate = Candidate {
        drv_path: DRV.to_owned(),
        name: "hello-2.12".to_owned(),
        system: "x86_64-linux".to_owned(),
        required_features: Vec::new(),
        details: Vec::new(),
    };
    let machine = |uri: &str| Machine {
        uri: uri.to_owned(),
        slots: 1,
        load: 0,
        speed_factor: 1.5,
        healthy: true,
        details: Vec::new(),
    };
    let machines = [machine("ssh://a"), machine("ssh://b")];
    let (decision, report) = plugin.select(&services, &candidate, &machines, &LocalMachine::default()).await;
    assert_eq!(decision.unwrap().action, Action::Machines(vec!["ssh://a".to_owned(), "ssh://b".to_owned()]));
    assert_eq!(report.outcome.message(), "as offered");

    let again = Host::new(&scene.dirs)
        .load(&scene.config("good", "grant = { state = true }").plugins["x"], &scene.config("good", ""));
    assert_eq!(again.unwrap().origin(), &Origin::Mapped, "another process maps what this one compiled");
}

#[tokio::test]
async fn failures_come_back_as_said_and_keep_their_state() {
    let scene = Scene::new();
    let (plugin, services) = scene.load("good", "config = { fail = \"transient\" }\ngrant = { state = true }");
    let report = plugin.run_event(&services, &built(), 1).await;
    let expected =
        Outcome::Failed { message: "told to fail for a while".to_owned(), transient: true, retry_after_ms: Some(7000) };
    assert_eq!(report.outcome, expected);
    let (plugin, services) = scene.load("good", "grant = { state = true }");
    assert_eq!(details(&plugin.run_event(&services, &built(), 2).await)["runs"], "2");
}

#[tokio::test]
async fn a_trap_discards_the_state_of_its_run() {
    let scene = Scene::new();
    let report = scene.fault("state-then-trap", "grant = { state = true }").await;
    assert_eq!(report.outcome.class(), "trapped");
    assert!(report.log.iter().any(|line| line.message.contains("told to trap")), "{:?}", report.log);
    assert!(!scene.dirs.plugin_state().join("x.sqlite").exists());
}

#[tokio::test]
async fn traps_name_the_plugin() {
    let scene = Scene::new();
    let report = scene.fault("trap", "").await;
    assert!(report.outcome.message().starts_with("plugin `x` trapped: wasm trap: "), "{:?}", report.outcome);
    let report = scene.fault("exit", "").await;
    assert!(report.outcome.message().contains("called exit(1) instead of returning"), "{:?}", report.outcome);
}

#[tokio::test]
async fn every_limit_names_its_key_and_line() {
    let scene = Scene::new();
    for (fault, key, rest) in [
        ("loop", "wall-time", "limits = { wall-time = \"200ms\" }"),
        ("memory", "memory", "limits = { memory = \"16MiB\" }"),
        ("stack", "stack", ""),
        ("host-calls", "host-calls", "limits = { host-calls = 50 }"),
        ("log", "host-bytes", "limits = { host-bytes = \"1MiB\" }"),
        ("call-bytes", "call-bytes", "grant = { state = true }"),
        ("output", "output-bytes", ""),
        ("trap", "memory", "limits = { memory = \"64KiB\" }"),
        ("trap", "table-elements", "limits = { table-elements = 1 }"),
        ("trap", "instances", "limits = { instances = 1 }"),
    ] {
        let report = scene.fault(fault, rest).await;
        let message = message_of_limit(&report, key);
        assert!(message.starts_with(&format!("plugin `x` reached its limit `{key}` (")), "{message}");
        assert!(message.contains(&format!("write `{key} = ")) && message.ends_with("under [plugins.x.limits]"), "{message}");
    }
}

#[tokio::test]
async fn bounded_things_that_do_not_end_a_run() {
    let scene = Scene::new();
    let report = scene.fault("log", "").await;
    assert_eq!(report.outcome.message(), "logged");
    assert!(report.usage.log_bytes <= 256 << 10);
    let last = &report.log.last().unwrap().message;
    assert!(last.contains("more messages were dropped") && last.contains("`log-bytes`"), "{last}");

    let report = scene.fault("state", "grant = { state = true }").await;
    assert_eq!(report.outcome.class(), "permanent");
    assert!(report.outcome.message().contains("reached its limit `state-bytes`"), "{:?}", report.outcome);
}

#[tokio::test]
async fn calls_without_a_grant_are_refused_with_the_line() {
    let scene = Scene::new();
    let report = scene.fault("state", "").await;
    assert_eq!(
        report.outcome.message(),
        format!(
            "plugin `x` has no grant for state; write `state = true` under [plugins.x.grant] in {}",
            scene.dirs.config.display()
        )
    );
    assert_eq!(report.usage.denied["state.set"], 1);
}

/// A loop in one plugin and its time-out leave the run of another alone, in the same engine.
#[tokio::test]
async fn neighbours_are_unharmed() {
    let scene = Scene::new();
    let (good, services) = scene.load("good", "grant = { state = true }");
    let (looping, _) = scene.load("faulty", "config = { fault = \"loop\" }\nlimits = { wall-time = \"300ms\" }");
    let work = async {
        for attempt in 1..=20 {
            let report = good.run_event(&services, &built(), attempt).await;
            assert_eq!(report.outcome.class(), "done", "{:?}", report.outcome);
        }
    };
    let event = built();
    let (looped, ()) = tokio::join!(looping.run_event(&services, &event, 1), work);
    message_of_limit(&looped, "wall-time");
    assert_eq!(good.run_event(&services, &event, 21).await.outcome.class(), "done");
}

#[test]
fn what_does_not_load_says_what_to_write() {
    let scene = Scene::new();
    insta::assert_snapshot!(scene.refused("good", ""), @r#"ROOT/hookrun.toml:1: plugin `x`: it wants `state` and has no grant for that; write `state = true` under [plugins.x.grant] in ROOT/hookrun.toml (there is no such table yet)"#);
    insta::assert_snapshot!(scene.refused("good", "grant = { state = true }\nconfig = { greetin = \"hi\" }"), @r#"ROOT/hookrun.toml:4: plugin `x`: config: Additional properties are not allowed ('greetin' was unexpected); change it (known keys: fail, greeting)"#);
    insta::assert_snapshot!(scene.refused("good", "grant = { state = true }\n[plugins.x.config]\nfail = 1"), @r#"ROOT/hookrun.toml:5: plugin `x`: config.fail: 1 is not one of "transient" or "permanent"; change it (known keys: fail, greeting)"#);

    let config = Config::parse(&scene.dirs.config, "[plugins.x]\nsource = \"none.wasm\"\n").unwrap();
    let message = Artifact::open(&config.plugins["x"], &config).unwrap_err().to_string();
    insta::assert_snapshot!(message.replace(&scene.dirs.config.parent().unwrap().display().to_string(), "ROOT"), @r#"ROOT/hookrun.toml:2: plugin `x`: there is no file ROOT/none.wasm; correct `source`"#);
}
