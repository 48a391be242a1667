//! Plays scenarios: prepares the plugin for each before the process enters its sandbox, then runs
//! their steps, several scenarios at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::expect::{self, Expect, Mail, Observed, Request};
use super::fault::{Fault, Variant};
use super::fuzz::{self, Generator};
use super::scenario::{Input, Scenario, ScenarioFile, Step};
use super::{MAX_LISTED, Question, Subject, samples, subject_line};
use crate::supervise::supervisor::serves;
use hookrun_capability::Services;
use hookrun_capability::clock::FixedClock;
use hookrun_capability::http;
use hookrun_capability::object_store::Object;
use hookrun_capability::random::SeededRandom;
use hookrun_capability::script::{Rule, Script, Scripted};
use hookrun_config::{Capability, Config, Plugin, Want};
use hookrun_host::{Host, LinkedPlugin, ReadyPlugin};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::HookKind;
use hookrun_nix::outcome::{Class, Outcome};

/// The largest object whose content is compared.
const MAX_OBJECT: u64 = 4 << 20;
/// The content type of objects that are there before the first step.
const GIVEN_TYPE: &str = "application/octet-stream";

/// A scenario in one of its variants, ready to be played in the sandbox.
pub struct Prepared {
    /// The plugin and the file, as the user named them.
    name: String,
    scenario: Arc<Scenario>,
    variant: Variant,
    /// None: the plugin does not load without a capability that it requires, which is right.
    loaded: Option<(Plugin, Config, ReadyPlugin)>,
}

/// The result of a scenario in one of its variants.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Played {
    /// The scenario's file, or the sample's description.
    pub name: String,
    /// The variant, such as `http=503`; empty for the scenario as it is written.
    pub variant: String,
    /// What it is about.
    pub description: String,
    /// Whether everything was as expected.
    pub passed: bool,
    /// A remark on a scenario that passed, such as that a fault was not met.
    pub note: Option<String>,
    /// The time that it took.
    #[serde(rename = "ms", serialize_with = "as_ms")]
    pub time: Duration,
    /// What each step did.
    pub steps: Vec<PlayedStep>,
}

/// The result of a step.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlayedStep {
    /// The hook.
    pub hook: HookKind,
    /// What differs from the expectations, a line each.
    pub differences: Vec<String>,
    /// What it did.
    #[serde(flatten)]
    pub observed: Observed,
}

fn as_ms<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64() * 1000.0)
}

/// Prepares a scenario in each variant.
///
/// # Errors
/// The scenario does not fit the plugin, or the plugin does not load with it. One line.
pub fn prepare(
    subject: &Subject,
    host: &Host,
    file: Option<&ScenarioFile>,
    variants: &[Variant],
) -> Result<Vec<Prepared>, String> {
    let mut prepared = Vec::new();
    for variant in variants {
        let (name, scenario, (mut plugin, mut config)) = match file {
            Some(ScenarioFile { path, text, scenario }) => {
                let configured = scenario.configure(path, text, subject)?;
                (path.display().to_string(), Arc::new(scenario.clone()), configured)
            }
            None => {
                let scenario = Scenario::of_samples();
                (
                    "samples".to_owned(),
                    Arc::new(scenario),
                    (subject.plugin.clone(), subject.config.clone()),
                )
            }
        };
        let problem = |error: hookrun_host::PluginError| match file {
            // The tables of the plugin are at the top of a scenario.
            Some(_) => {
                error.to_string().replace(&format!("[plugins.{}.", subject.plugin.name), "[")
            }
            None => subject.explain(error),
        };
        let mut loaded = None;
        if let Variant::Denied(capability) = variant {
            let ready = host.open(&plugin, &config).map_err(problem)?;
            if ready.description().metadata.wants.of(*capability) == Want::Required {
                prepared.push(Prepared { name, scenario, variant: variant.clone(), loaded });
                continue;
            }
            capability.revoke(&mut plugin.grant);
            config.plugins.insert(plugin.name.clone(), plugin.clone());
        }
        let ready = host.prepare(&plugin, &config).map_err(problem)?;
        loaded = Some((plugin, config, ready));
        prepared.push(Prepared { name, scenario, variant: variant.clone(), loaded });
    }
    Ok(prepared)
}

/// Plays all scenarios, `parallel` at once, and returns their results in order.
pub async fn play(all: Vec<Prepared>, dirs: &Dirs, parallel: usize) -> Vec<Vec<Played>> {
    let dirs = Arc::new(dirs.clone());
    let tasks = all.into_iter().map(|prepared| {
        let dirs = Arc::clone(&dirs);
        let name = prepared.name.clone();
        let variant = prepared.variant.to_string();
        async move {
            let task = tokio::spawn(async move { play_one(prepared, &dirs).await });
            task.await.unwrap_or_else(|error| vec![broken(name, variant, error.to_string())])
        }
    });
    stream::iter(tasks).buffered(parallel.max(1)).collect().await
}

fn broken(name: String, variant: String, problem: String) -> Played {
    let report = Outcome::Refused { message: problem.clone() }.into();
    let observed = Observed {
        report,
        calls: Vec::new(),
        requests: Vec::new(),
        mails: Vec::new(),
        state: BTreeMap::new(),
        objects: BTreeMap::new(),
    };
    let step = PlayedStep { hook: HookKind::PostBuild, differences: vec![problem], observed };
    Played {
        name,
        variant,
        description: String::new(),
        passed: false,
        note: None,
        time: Duration::ZERO,
        steps: vec![step],
    }
}

/// What [`fuzz()`] found: a defect, and the scenario that shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FuzzFinding {
    /// The hook.
    pub hook: HookKind,
    /// The outcome of the run.
    pub message: String,
    /// The text of a scenario with the smallest event that was found.
    pub scenario: String,
}

/// The result of [`fuzz()`].
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fuzzed {
    /// The number of runs.
    pub runs: u64,
    /// The seed.
    pub seed: u64,
    /// The first defect.
    pub finding: Option<FuzzFinding>,
}

/// Runs the hooks of a plugin on changed samples until `time` is over or a defect is found.
///
/// # Errors
/// The plugin does not load.
pub async fn fuzz(
    subject: &Subject,
    ready: ReadyPlugin,
    dirs: &Dirs,
    seed: u64,
    time: Duration,
) -> Result<Fuzzed, String> {
    let linked = ready.link(&subject.config).map_err(|error| subject.explain(error))?;
    let player = Player {
        plugin: &subject.plugin,
        config: &subject.config,
        linked: &linked,
        dirs,
        variant: &Variant::Usual,
    };
    let begun = Instant::now();
    let mut generator = Generator::new(seed);
    let mut fuzzed = Fuzzed { runs: 0, seed, finding: None };
    let hooks: Vec<_> = player
        .hooks()
        .into_iter()
        .filter_map(|hook| fuzz::sample(hook).map(|sample| (hook, sample)))
        .collect();
    while begun.elapsed() < time && !hooks.is_empty() {
        for (hook, sample) in &hooks {
            let mut changes = fuzz::changes(sample, &mut generator);
            let Some(mut message) = player.defect(*hook, &fuzz::changed(sample, &changes)).await
            else {
                fuzzed.runs += 1;
                continue;
            };
            // Without each change in turn: those that are left are needed.
            let mut number = 0;
            while number < changes.len() {
                let mut fewer = changes.clone();
                fewer.remove(number);
                fuzzed.runs += 1;
                match player.defect(*hook, &fuzz::changed(sample, &fewer)).await {
                    Some(same) => (changes, message) = (fewer, same),
                    None => number += 1,
                }
            }
            let value = fuzz::changed(sample, &changes);
            let scenario = fuzz::step_text(*hook, sample, &value);
            fuzzed.finding = Some(FuzzFinding { hook: *hook, message, scenario });
            return Ok(fuzzed);
        }
    }
    Ok(fuzzed)
}

async fn play_one(prepared: Prepared, dirs: &Dirs) -> Vec<Played> {
    let Prepared { name, scenario, variant, loaded } = prepared;
    let shown = variant.to_string();
    let Some((plugin, config, ready)) = loaded else {
        let capability = variant.capability().map_or("", Capability::name);
        return vec![Played {
            description: scenario.description.clone(),
            passed: true,
            note: Some(format!(
                "does not load without `{capability}`, as its metadata says (`Want::Required`)"
            )),
            name,
            variant: shown,
            time: Duration::ZERO,
            steps: Vec::new(),
        }];
    };
    let linked = match ready.link(&config) {
        Ok(linked) => linked,
        Err(error) => return vec![broken(name, shown, error.to_string())],
    };
    let player =
        Player { plugin: &plugin, config: &config, linked: &linked, dirs, variant: &variant };
    if scenario.steps.is_empty() {
        // The samples do not depend on each other.
        let mut all = Vec::new();
        for (what, hook, input) in player.samples() {
            all.push(
                player
                    .play(
                        format!("{name}: {what}"),
                        &scenario,
                        vec![(hook, input, Expect::default())],
                    )
                    .await,
            );
        }
        return all;
    }
    let mut inputs = Vec::new();
    for (number, step) in scenario.steps.iter().enumerate() {
        match step.input(&player.hooks()) {
            Ok((hook, input)) => inputs.push((hook, input, step.expect.clone())),
            Err(problem) => {
                return vec![broken(name, shown, format!("step {}: {problem}", number + 1))];
            }
        }
    }
    vec![player.play(name, &scenario, inputs).await]
}

struct Player<'a> {
    plugin: &'a Plugin,
    config: &'a Config,
    linked: &'a LinkedPlugin,
    dirs: &'a Dirs,
    variant: &'a Variant,
}

impl Player<'_> {
    fn hooks(&self) -> Vec<HookKind> {
        let served = |hook: &HookKind| serves(self.plugin, Some(self.linked.hooks()), *hook);
        HookKind::ALL.into_iter().filter(served).collect()
    }

    fn samples(&self) -> Vec<(String, HookKind, Input)> {
        let mut all = Vec::new();
        for hook in self.hooks() {
            match samples::event(hook) {
                Some(_) => {
                    let step = Step::of_sample(hook);
                    if let Ok((hook, input)) = step.input(&[hook]) {
                        all.push((hook.to_string(), hook, input));
                    }
                }
                None => all.extend(samples::questions().into_iter().map(|question| {
                    (question.what.to_owned(), hook, Input::Question(Box::new(question)))
                })),
            }
        }
        all
    }

    /// Runs a hook, and returns the message of a run that traps or reaches a limit.
    async fn defect(&self, hook: HookKind, value: &serde_json::Value) -> Option<String> {
        let input = fuzz::input(hook, value)?;
        let start = Duration::from_millis(samples::TIME_MS);
        let services = Services::in_memory(self.config, self.dirs)
            .with_clock(Arc::new(FixedClock::new(start)))
            .with_random(Arc::new(SeededRandom::new(0)));
        let report = self.run(&services, input).await;
        fuzz::is_defect(&report.outcome).then(|| report.outcome.message().to_owned())
    }

    async fn play(
        &self,
        name: String,
        scenario: &Scenario,
        inputs: Vec<(HookKind, Input, Expect)>,
    ) -> Played {
        let begun = Instant::now();
        // A slow service still answers what the scenario says.
        let is_slow = |rule: &Rule| rule.answer == Scripted::Slow;
        let (slow, mut rules): (Vec<_>, Vec<_>) =
            self.variant.rules().into_iter().partition(is_slow);
        rules.extend(scenario.rules());
        rules.extend(slow);
        let script = Arc::new(Script::new(rules));
        let start = scenario.start().unwrap_or_default();
        let services = Services::in_memory(self.config, self.dirs)
            .with_clock(Arc::new(FixedClock::new(start)))
            .with_random(Arc::new(SeededRandom::new(scenario.seed)))
            .with_script(Arc::clone(&script));
        let mut played = Played {
            name,
            variant: self.variant.to_string(),
            description: scenario.description.clone(),
            passed: true,
            note: None,
            time: Duration::ZERO,
            steps: Vec::new(),
        };
        if let Err(problem) = self.give(scenario, &services).await {
            return broken(played.name, played.variant, problem);
        }
        let mut seen = (0, 0);
        let mut is_met = false;
        for (hook, input, expect) in inputs {
            let answered = script.answered();
            let outcome = self.run(&services, input).await;
            let observed = self.observe(&services, &script, outcome, &mut seen).await;
            let met = match self.variant {
                Variant::Usual => false,
                Variant::Denied(_) => {
                    observed.report.usage.denied.keys().any(|call| self.variant.is_about(call))
                }
                Variant::Failing(..) => script.answered() > answered,
            };
            is_met |= met;
            let differences = match self.variant {
                Variant::Usual | Variant::Failing(_, Fault::Slow) => expect.differences(&observed),
                Variant::Denied(_) | Variant::Failing(..) if met => {
                    self.judge(hook, scenario, &observed)
                }
                // Later steps may depend on what an earlier one could not do. A plugin that asks
                // for the granted names does without a call that fails.
                Variant::Denied(_) => Vec::new(),
                Variant::Failing(..) if is_met => Vec::new(),
                Variant::Failing(..) => expect.differences(&observed),
            };
            played.passed &= differences.is_empty();
            played.steps.push(PlayedStep { hook, differences, observed });
        }
        if !is_met && *self.variant != Variant::Usual {
            played.note = Some("no call met the fault".to_owned());
        }
        played.time = begun.elapsed();
        played
    }

    /// Judges a run in which a call failed as the variant says.
    fn judge(&self, hook: HookKind, scenario: &Scenario, observed: &Observed) -> Vec<String> {
        let variant = self.variant.to_string();
        let outcome = &observed.report.outcome;
        let capability = self.variant.capability().map_or("", Capability::name);
        let is_tolerated =
            scenario.tolerates.iter().any(|known| *known == variant || known == capability);
        match outcome.class() {
            Class::Trapped | Class::Limit => vec![format!(
                "under `{variant}` the plugin must return a failure, and it ended with {}: {}",
                outcome.class(),
                outcome.message()
            )],
            // A policy that cannot use its state still decides.
            Class::Done
                if !self.variant.may_succeed()
                    && !is_tolerated
                    && hook != HookKind::BuilderSelection =>
            {
                vec![format!(
                    "under `{variant}` a call of `{capability}` failed, and the plugin reports success ({}); return the error, or write `tolerates = [\"{variant}\"]` in the scenario if success is right",
                    outcome.message()
                )]
            }
            _ => Vec::new(),
        }
    }

    /// Puts what the scenario gives into the services.
    async fn give(&self, scenario: &Scenario, services: &Services) -> Result<(), String> {
        let pairs = scenario.given.state.iter();
        let pairs = pairs.map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
        services.state().fill(&self.plugin.name, pairs);
        for (store, objects) in &scenario.given.objects {
            let objects = objects.iter().map(|(key, body)| Object {
                key: key.clone(),
                content_type: GIVEN_TYPE.to_owned(),
                body: body.clone().into_bytes(),
            });
            let put = services.object_stores().put_all(store, objects.collect()).await;
            put.map_err(|error| format!("given.objects.{store}: {error}"))?;
        }
        Ok(())
    }

    async fn run(&self, services: &Services, input: Input) -> hookrun_nix::outcome::RunReport {
        match input {
            Input::Event(event, attempt) => self.linked.run_event(services, &event, attempt).await,
            Input::Question(question) => {
                let Question { what: _, candidate, machines, local } = *question;
                let (decision, mut report) =
                    self.linked.select(services, &candidate, &machines, &local).await;
                let checked = decision.and_then(|decision| {
                    hookrun_builders::choice::policy::checked(decision, &machines, &local)
                });
                if let Err(error) = checked
                    && matches!(report.outcome, Outcome::Done { .. })
                {
                    report.outcome = Outcome::Failed {
                        message: error.to_string(),
                        transient: false,
                        retry_after_ms: None,
                    };
                }
                report
            }
        }
    }

    /// Returns what the run did. `seen` counts the requests and mails of earlier steps.
    async fn observe(
        &self,
        services: &Services,
        script: &Script,
        report: hookrun_nix::outcome::RunReport,
        seen: &mut (usize, usize),
    ) -> Observed {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let requested = services.http().requested();
        let requests = requested.iter().skip(seen.0).map(|requested| {
            let http::Requested { method, url, headers, credential, body } = requested;
            Request {
                method: method.clone(),
                url: url.clone(),
                headers: headers.iter().cloned().collect(),
                credential: credential.clone(),
                body: Some(text(body)),
            }
        });
        let captured = services.mail().captured();
        let mails = captured.iter().skip(seen.1).map(|mail| Mail {
            transport: Some(mail.transport.clone()),
            to: Some(mail.recipients.clone()),
            subject: Some(subject_line(&mail.raw)),
            message: Some(text(&mail.raw)),
        });
        let (requests, mails) = (requests.collect(), mails.collect());
        *seen = (requested.len(), captured.len());
        let pairs = services.state().load(&self.plugin.name).unwrap_or_default();
        let state = pairs.into_iter().map(|(key, value)| (key, text(&value))).collect();
        let mut objects = BTreeMap::new();
        for store in &self.plugin.grant.object_store {
            let stores = services.object_stores();
            let mut contents = BTreeMap::new();
            for key in stores.list(store, "", MAX_LISTED, u64::MAX).await.unwrap_or_default() {
                let body = stores.get(store, &key, MAX_OBJECT).await.ok().flatten();
                // A NAR is compared by its key, which names its hash.
                let body = body.and_then(|body| String::from_utf8(body).ok());
                contents.insert(key, body.unwrap_or_else(|| "*".to_owned()));
            }
            objects.insert(store.clone(), contents);
        }
        let calls = script.take_calls().into_iter().map(expect::call_text).collect();
        Observed { report, calls, requests, mails, state, objects }
    }
}
