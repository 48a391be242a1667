//! Scenarios of `hookrun test`: TOML files with events, what the services hold and answer, and what
//! the plugin is expected to do. `docs/scenarios.md` describes every key.
//!
//! The format has a version ([`FORMAT`]). A file of a later version is refused as such, and an
//! unknown key is an error that names the known ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::expect::Expect;
use super::{Question, Subject, samples, wave};
use hookrun_capability::script::{HTTP, Rule, Scripted};
use hookrun_capability::{CapabilityError, ErrorKind};
use hookrun_config::{Config, Plugin, nearest};
use hookrun_nix::event::{Event, HookKind};

/// The version of the format.
const FORMAT: u32 = 1;

/// The largest file; a scenario of every path of a closure has some hundred KiB.
const MAX_LENGTH: u64 = 16 << 20;

/// A scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Scenario {
    /// [`FORMAT`].
    pub format: u32,
    /// What it is about, in one sentence.
    #[serde(default)]
    pub description: String,
    /// The time at which the guest's clock starts (RFC 3339); none: 2025-01-01T12:00:00Z.
    pub clock: Option<String>,
    /// The seed of the guest's random numbers.
    #[serde(default)]
    pub seed: u64,
    /// The plugin's `config`; none: that of the plugin's configuration.
    config: Option<toml::Table>,
    /// The plugin's grants; none: those of the plugin's configuration.
    grant: Option<toml::Table>,
    /// The plugin's limits; none: those of the plugin's configuration.
    limits: Option<toml::Table>,
    /// Tables as in `hookrun.toml`, beside those of the plugin's configuration.
    #[serde(default)]
    object_stores: toml::Table,
    #[serde(default)]
    signing_keys: toml::Table,
    #[serde(default)]
    mail: toml::Table,
    #[serde(default)]
    http_credentials: toml::Table,
    /// What services hold before the first step.
    #[serde(default)]
    pub given: Given,
    /// Scripted answers; the first that fits a call answers it.
    #[serde(default, rename = "answer")]
    answers: Vec<Answer>,
    /// Variants (`deny mail`, `http=503`) and capabilities (`mail`) whose failure the plugin may
    /// ignore.
    #[serde(default)]
    pub tolerates: Vec<String>,
    /// Calls of hooks, in order, with the services between them kept.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
}

/// What services hold before the first step.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// The plugin's key-value store.
    pub state: BTreeMap<String, String>,
    /// Objects by store and key.
    pub objects: BTreeMap<String, BTreeMap<String, String>>,
}

/// A scripted answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Answer {
    call: String,
    arguments: Option<String>,
    method: Option<String>,
    url: Option<String>,
    times: Option<u32>,
    error: Option<ScriptedError>,
    fault: Option<String>,
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ScriptedError {
    kind: ErrorKind,
    message: String,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

/// A call of a hook.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Step {
    /// The hook; none: the only one that the plugin serves.
    pub hook: Option<HookKind>,
    /// The number of the attempt.
    pub attempt: Option<u32>,
    /// Keys of the event that differ from the sample, as a table or as a WAVE record.
    event: Option<toml::Value>,
    /// For a policy: keys of the candidate, as a table or as a WAVE record.
    candidate: Option<toml::Value>,
    /// For a policy: the machines.
    machines: Option<toml::Value>,
    /// For a policy: this machine.
    local: Option<toml::Value>,
    /// What is expected.
    pub expect: Expect,
}

/// A scenario and the file that it is from.
#[derive(Debug, Clone)]
pub struct ScenarioFile {
    pub path: PathBuf,
    pub text: String,
    pub scenario: Scenario,
}

/// The question or the event of a step.
pub enum Input {
    /// For the hooks that use the spool.
    Event(Box<Event>, u32),
    /// For a policy.
    Question(Box<Question>),
}

impl ScenarioFile {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a scenario; the error is one line with the fix.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let unreadable =
            |error: std::io::Error| format!("{shown} cannot be read ({error}); correct the path");
        let length = std::fs::metadata(path).map_err(unreadable)?.len();
        if length > MAX_LENGTH {
            return Err(format!("{shown} has {length} bytes; a scenario has at most {MAX_LENGTH}"));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let scenario = parse(&text).map_err(|problem| format!("{shown}{problem}"))?;
        Ok(Self { path: path.to_owned(), text, scenario })
    }
}

/// Parses a scenario. An error begins with `:LINE: ` or `: `.
fn parse(text: &str) -> Result<Scenario, String> {
    #[derive(Deserialize)]
    struct Format {
        format: Option<u32>,
    }
    let problem = |error: &toml::de::Error| {
        let line = error.span().map(|span| {
            let before = text.get(..span.start).unwrap_or_default();
            format!(":{}", before.matches('\n').count() + 1)
        });
        format!("{}: {}", line.unwrap_or_default(), error.message().replace('\n', " "))
    };
    let Format { format } = toml::from_str(text).map_err(|error| problem(&error))?;
    match format {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(format!(
                ": is a scenario of format {other}, and this hookrun reads format {FORMAT}; use a matching release"
            ));
        }
        None => {
            return Err(format!(": has no format; write `format = {FORMAT}` in its first line"));
        }
    }
    let scenario: Scenario = toml::from_str(text).map_err(|error| problem(&error))?;
    for answer in &scenario.answers {
        answer.rule().map_err(|error| format!(": answer `{}`: {error}", answer.call))?;
    }
    scenario.start().map_err(|error| format!(": {error}"))?;
    Ok(scenario)
}

impl Scenario {
    /// Returns a scenario with one step for each input, which expects success.
    pub fn of_samples() -> Self {
        Self {
            format: FORMAT,
            description: String::new(),
            clock: None,
            seed: 0,
            config: None,
            grant: None,
            limits: None,
            object_stores: toml::Table::new(),
            signing_keys: toml::Table::new(),
            mail: toml::Table::new(),
            http_credentials: toml::Table::new(),
            given: Given::default(),
            answers: Vec::new(),
            tolerates: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Returns the time at which the guest's clock starts, since 1970.
    ///
    /// # Errors
    /// It is not a time.
    pub fn start(&self) -> Result<Duration, String> {
        let Some(clock) = &self.clock else { return Ok(Duration::from_millis(samples::TIME_MS)) };
        let time = humantime::parse_rfc3339(clock).map_err(|error| {
            format!(
                "clock `{clock}` is not a time ({error}); write for example `2025-01-01T12:00:00Z`"
            )
        })?;
        time.duration_since(std::time::UNIX_EPOCH)
            .map_err(|_| format!("clock `{clock}` is before 1970"))
    }

    /// Returns the rules of the scripted answers.
    pub fn rules(&self) -> Vec<Rule> {
        // They were checked when the file was read.
        self.answers.iter().filter_map(|answer| answer.rule().ok()).collect()
    }

    /// Returns the plugin and the configuration of the scenario, which are `subject`'s with the
    /// tables of the scenario.
    ///
    /// # Errors
    /// The tables are not valid.
    pub fn configure(
        &self,
        path: &Path,
        own_text: &str,
        subject: &Subject,
    ) -> Result<(Plugin, Config), String> {
        let Subject { plugin, config, .. } = subject;
        let shown = path.display();
        let mut text: toml::Table = toml::from_str(&config.text)
            .map_err(|error| format!("{}: {}", config.path.display(), error.message()))?;
        let sections = [
            ("object-stores", &self.object_stores),
            ("signing-keys", &self.signing_keys),
            ("mail", &self.mail),
            ("http-credentials", &self.http_credentials),
        ];
        for (section, tables) in sections {
            let all = text
                .entry(section)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut();
            if let Some(all) = all {
                all.extend(tables.clone());
            }
        }
        let mut table = toml::Table::new();
        table.insert("source".to_owned(), plugin.source.to_string().into());
        let own = [("config", &self.config), ("grant", &self.grant), ("limits", &self.limits)];
        for (key, own) in own {
            if let Some(own) = own {
                table.insert(key.to_owned(), toml::Value::Table(own.clone()));
            }
        }
        let plugins = toml::Table::from_iter([(plugin.name.clone(), toml::Value::Table(table))]);
        text.insert("plugins".to_owned(), toml::Value::Table(plugins));
        // Relative paths of the configuration stay relative to its own directory.
        let mut scenario =
            Config::parse(&config.path, &text.to_string()).map_err(|mut error| {
                error.line = None;
                path.clone_into(&mut error.path);
                error.to_string()
            })?;
        scenario = scenario.located_in(path, own_text, &plugin.name);
        let mut own = scenario
            .plugins
            .remove(&plugin.name)
            .ok_or_else(|| format!("{shown}: the plugin `{}` is missing", plugin.name))?;
        own.source.clone_from(&plugin.source);
        own.hooks.clone_from(&plugin.hooks);
        if self.config.is_none() {
            own.config = plugin.config.clone();
        }
        if self.grant.is_none() {
            own.grant = plugin.grant.clone();
        }
        if self.limits.is_none() {
            own.limits = plugin.limits.clone();
        }
        scenario.plugins.insert(plugin.name.clone(), own.clone());
        Ok((own, scenario))
    }
}

impl Answer {
    fn rule(&self) -> Result<Rule, String> {
        let Self { call, arguments, method, url, times, error, fault, status, headers, body } =
            self;
        let is_http = call == HTTP;
        if !is_http && (method.is_some() || url.is_some()) {
            return Err("`method` and `url` belong to an answer with `call = \"http\"`".to_owned());
        }
        let answer = match (error, fault.as_deref(), status) {
            (Some(ScriptedError { kind, message, retry_after_ms }), None, None) => {
                let mut error = CapabilityError::new(*kind, message.as_str());
                error.retry_after = retry_after_ms.map(Duration::from_millis);
                Scripted::Error(error)
            }
            (None, Some("timeout"), None) => Scripted::Timeout,
            (None, Some("garbage"), None) => Scripted::Garbage,
            (None, Some("slow"), None) => Scripted::Slow,
            (None, Some(other), None) => {
                return Err(format!(
                    "fault `{other}` is unknown; write `timeout`, `garbage` or `slow`"
                ));
            }
            (None, None, Some(status)) => Scripted::Response {
                status: *status,
                headers: headers.clone().into_iter().collect(),
                body: body.clone().into_bytes(),
            },
            _ => {
                return Err(
                    "write one of `status` (with `headers` and `body`), `error` and `fault`"
                        .to_owned(),
                );
            }
        };
        if let Scripted::Response { status, .. } = &answer
            && !(100..=599).contains(status)
        {
            return Err(format!("status {status} is not an HTTP status"));
        }
        Ok(Rule {
            call: call.clone(),
            arguments: arguments.clone(),
            method: method.clone(),
            url: url.clone(),
            times: *times,
            answer,
        })
    }
}

impl Step {
    /// Returns a step with the sample of a hook.
    pub(super) fn of_sample(hook: HookKind) -> Self {
        Self { hook: Some(hook), ..Self::default() }
    }

    /// Returns what the hook is called with. `hooks` are those that the plugin serves.
    ///
    /// # Errors
    /// The step names no hook and there are several, or its event is not valid.
    pub fn input(&self, hooks: &[HookKind]) -> Result<(HookKind, Input), String> {
        let hook = match (self.hook, hooks) {
            (Some(hook), _) if hooks.contains(&hook) => hook,
            (Some(hook), _) => {
                return Err(format!("the plugin does not serve the hook `{hook}`; correct `hook`"));
            }
            (None, [only]) => *only,
            (None, _) => {
                let names: Vec<_> = hooks.iter().map(|hook| hook.as_str()).collect();
                return Err(format!(
                    "write the hook, such as `hook = \"{}\"`: the plugin serves {}",
                    names.first().copied().unwrap_or_default(),
                    names.join(", ")
                ));
            }
        };
        match samples::event(hook) {
            Some(sample) => {
                let event = self.event_of(&sample)?;
                Ok((hook, Input::Event(Box::new(event), self.attempt.unwrap_or(1))))
            }
            None => Ok((hook, Input::Question(Box::new(self.question()?)))),
        }
    }

    fn event_of(&self, sample: &Event) -> Result<Event, String> {
        let mut event = serde_json::to_value(sample).map_err(|error| error.to_string())?;
        if let Some(own) = &self.event {
            let Value::Object(own) = json(own)? else {
                return Err("`event` must be a table or a WAVE record".to_owned());
            };
            for (key, value) in own {
                let Value::Object(whole) = &mut event else { continue };
                let inner = whole.get("hook").and_then(Value::as_object);
                let is_of_hook = inner.is_some_and(|hook| hook.contains_key(&key));
                let known: Vec<String> = whole
                    .keys()
                    .chain(inner.into_iter().flat_map(|hook| hook.keys()))
                    .cloned()
                    .collect();
                if is_of_hook {
                    if let Some(Value::Object(hook)) = whole.get_mut("hook") {
                        hook.insert(key, value);
                    }
                } else if whole.contains_key(&key) && key != "hook" && key != "format" {
                    whole.insert(key, value);
                } else {
                    let names = known.iter().map(String::as_str);
                    let names = names.filter(|name| !["hook", "format", "kind"].contains(name));
                    let hint = match nearest(&key, names.clone()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known: {}", names.collect::<Vec<_>>().join(", ")),
                    };
                    return Err(format!("an event has no key `{key}`; {hint}"));
                }
            }
        }
        serde_json::from_value(event).map_err(|error| format!("the event is not valid: {error}"))
    }

    fn question(&self) -> Result<Question, String> {
        let sample = samples::questions().into_iter().next();
        let mut question = sample.ok_or_else(|| "there is no sample question".to_owned())?;
        question.candidate = fill("candidate", &question.candidate, self.candidate.as_ref())?
            .unwrap_or(question.candidate);
        question.machines = fill("machines", &question.machines, self.machines.as_ref())?
            .unwrap_or(question.machines);
        question.local =
            fill("local", &question.local, self.local.as_ref())?.unwrap_or(question.local);
        Ok(question)
    }
}

/// Returns `sample` with the keys of `own`; none if there are none.
fn fill<T: serde::de::DeserializeOwned + serde::Serialize>(
    name: &str,
    sample: &T,
    own: Option<&toml::Value>,
) -> Result<Option<T>, String> {
    let Some(own) = own else { return Ok(None) };
    let mut value = serde_json::to_value(sample).map_err(|error| error.to_string())?;
    match (&mut value, with_underscores(json(own)?)) {
        (Value::Object(value), Value::Object(own)) => {
            if let Some(key) = own.keys().find(|key| !value.contains_key(*key)) {
                let key = key.replace('_', "-");
                let known: Vec<_> = value.keys().map(|known| known.replace('_', "-")).collect();
                return Err(format!("`{name}` has no key `{key}`; known: {}", known.join(", ")));
            }
            value.extend(own);
        }
        (value, own) => *value = own,
    }
    serde_json::from_value(value).map(Some).map_err(|error| format!("`{name}`: {error}"))
}

/// Returns a value of a scenario as JSON; a string is WAVE text.
fn json(value: &toml::Value) -> Result<Value, String> {
    match value {
        toml::Value::String(text) => wave::json(text).map_err(|error| format!("`{text}` {error}")),
        other => serde_json::to_value(other).map_err(|error| error.to_string()),
    }
}

/// Replaces the dashes in keys by underscores, as the types of policies have them.
fn with_underscores(value: Value) -> Value {
    match value {
        Value::Object(table) => Value::Object(
            table
                .into_iter()
                .map(|(key, value)| (key.replace('-', "_"), with_underscores(value)))
                .collect(),
        ),
        Value::Array(values) => Value::Array(values.into_iter().map(with_underscores).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hookrun_nix::event::HookEvent;

    #[test]
    fn a_scenario_that_is_not_valid_is_refused_with_its_line_and_the_fix() {
        let problem = |text: &str| parse(text).unwrap_err();
        insta::assert_snapshot!(problem("[[step]]"), @": has no format; write `format = 1` in its first line");
        insta::assert_snapshot!(problem("format = 2"), @": is a scenario of format 2, and this hookrun reads format 1; use a matching release");
        insta::assert_snapshot!(problem("format = 1\nclock = \"noon\""), @": clock `noon` is not a time (timestamp format is invalid); write for example `2025-01-01T12:00:00Z`");
        insta::assert_snapshot!(problem("format = 1\n[[step]]\nexpekt = {}"), @":3: unknown field `expekt`, expected one of `hook`, `attempt`, `event`, `candidate`, `machines`, `local`, `expect`");
        insta::assert_snapshot!(problem("format = 1\n[[answer]]\ncall = \"http\""), @": answer `http`: write one of `status` (with `headers` and `body`), `error` and `fault`");
        insta::assert_snapshot!(problem("format = 1\n[[answer]]\ncall = \"http\"\nfault = \"fire\""), @": answer `http`: fault `fire` is unknown; write `timeout`, `garbage` or `slow`");
        insta::assert_snapshot!(problem("format = 1\n[[answer]]\ncall = \"state.get\"\nurl = \"x\"\nstatus = 200"), @r#": answer `state.get`: `method` and `url` belong to an answer with `call = "http"`"#);
    }

    fn step(text: &str) -> Step {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_event_is_the_sample_with_the_keys_of_the_step_as_toml_or_wave() {
        let event = |text: &str| match step(text).input(&[HookKind::PostBuild]) {
            Ok((_, Input::Event(event, attempt))) => Ok((*event, attempt)),
            Ok(_) => panic!("not an event"),
            Err(error) => Err(error),
        };
        let toml = "attempt = 2\n[event]\nhost = \"h\"\ndrv-path = \"/nix/store/x.drv\"\noutputs = [{ name = \"out\", path = \"/nix/store/x\" }]";
        let wave = r#"attempt = 2
            event = '{host: "h", drv-path: "/nix/store/x.drv", outputs: [{name: "out", path: "/nix/store/x"}]}'"#;
        let (read, attempt) = event(toml).unwrap();
        assert_eq!(event(wave).unwrap(), (read.clone(), attempt));
        assert_eq!((read.host.as_str(), attempt), ("h", 2));
        let HookEvent::PostBuild(build) = read.hook else { panic!("another hook") };
        assert_eq!(build.outputs[0].path, "/nix/store/x");
        insta::assert_snapshot!(event("event = { drvpath = \"x\" }").unwrap_err(), @"an event has no key `drvpath`; did you mean `drv-path`?");
        insta::assert_snapshot!(event("hook = \"diff\"").unwrap_err(), @"the plugin does not serve the hook `diff`; correct `hook`");
        insta::assert_snapshot!(step("").input(&[HookKind::PostBuild, HookKind::Diff]).err().unwrap(), @r#"write the hook, such as `hook = "post-build"`: the plugin serves post-build, diff"#);
    }

    #[test]
    fn a_question_has_the_machines_of_the_step() {
        let step = step(
            "machines = [{ uri = \"ssh://a\", slots = 2, speed-factor = 3.0 }]\nlocal = { able = false }",
        );
        let Ok((_, Input::Question(question))) = step.input(&[HookKind::BuilderSelection]) else {
            panic!("not a question")
        };
        assert_eq!(question.machines.len(), 1);
        assert!((question.machines[0].speed_factor - 3.0).abs() < f64::EPSILON);
        assert!(!question.local.able);
        assert_eq!(question.candidate.name, "greet-2.12");
    }
}
