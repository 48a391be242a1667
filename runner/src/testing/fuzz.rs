//! `hookrun test --fuzz`: runs a plugin on events that are changed at random, and reports the
//! smallest change with which it traps or reaches a limit.
//!
//! The changes follow the interface's types: every event is one that a hook may send. The same seed
//! makes the same events.

use serde_json::{Map, Value};

use super::scenario::{Input, Step};
use hookrun_nix::event::HookKind;
use hookrun_nix::outcome::{Class, Outcome};

/// Changes of one event.
const MAX_CHANGES: usize = 4;

/// A generator of changes; the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub(super) struct Generator(u64);

impl Generator {
    pub(super) const fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % bound).unwrap_or_default()
    }
}

/// A changed value of an event, by its keys and indices.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    place: Vec<String>,
    value: Value,
}

/// Returns changes of `sample`, the JSON of what a hook is called with.
pub(super) fn changes(sample: &Value, generator: &mut Generator) -> Vec<Change> {
    let mut places = Vec::new();
    collect(sample, &mut Vec::new(), &mut places);
    let count = 1 + generator.below(MAX_CHANGES);
    let mut changes = Vec::new();
    for _ in 0..count {
        let place = places.get(generator.below(places.len())).cloned().unwrap_or_default();
        if let Some(old) = at(sample, &place) {
            let value = another(old, generator);
            changes.push(Change { place, value });
        }
    }
    changes
}

/// Returns `sample` with the changes.
pub(super) fn changed(sample: &Value, changes: &[Change]) -> Value {
    let mut value = sample.clone();
    for Change { place, value: new } in changes {
        if let Some(old) = at_mut(&mut value, place) {
            *old = new.clone();
        }
    }
    value
}

/// The keys that only hookrun reads, or whose values it has checked before a plugin gets them.
const FIXED: [&str; 8] =
    ["format", "kind", "nix", "origin", "plugins", "seen-valid", "caller", "id"];

fn collect(value: &Value, here: &mut Vec<String>, places: &mut Vec<Vec<String>>) {
    if !here.is_empty() {
        places.push(here.clone());
    }
    let mut visit = |key: String, value: &Value| {
        if !FIXED.contains(&key.as_str()) {
            here.push(key);
            collect(value, here, places);
            here.pop();
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                visit(key.clone(), value);
            }
        }
        Value::Array(items) => {
            for (number, value) in items.iter().enumerate() {
                visit(number.to_string(), value);
            }
        }
        _ => {}
    }
}

fn at<'a>(value: &'a Value, place: &[String]) -> Option<&'a Value> {
    place.iter().try_fold(value, |value, key| match value {
        Value::Object(fields) => fields.get(key),
        Value::Array(items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

fn at_mut<'a>(value: &'a mut Value, place: &[String]) -> Option<&'a mut Value> {
    place.iter().try_fold(value, |value, key| match value {
        Value::Object(fields) => fields.get_mut(key),
        Value::Array(items) => items.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Returns another value of the same type.
fn another(old: &Value, generator: &mut Generator) -> Value {
    const NUMBERS: [u64; 8] = [0, 1, 2, 255, 65_536, u32::MAX as u64, 1 << 53, u64::MAX];
    const TEXTS: [&str; 9] =
        ["", " ", "/", "a", "\u{0}", "é\u{301}\u{1f600}", "\"\\\n\r\t", "-", "/nix/store/"];
    let number = |generator: &mut Generator| {
        NUMBERS.get(generator.below(NUMBERS.len())).copied().unwrap_or_default()
    };
    match old {
        Value::Bool(old) => Value::Bool(!old),
        Value::Number(old) if old.is_f64() => {
            const FLOATS: [f64; 6] = [0.0, -1.0, 0.1, 1e-300, 1e300, f64::MAX];
            let float = FLOATS.get(generator.below(FLOATS.len())).copied().unwrap_or_default();
            serde_json::Number::from_f64(float).map_or(Value::Null, Value::Number)
        }
        // `null` is an optional value that is none; most of those are numbers.
        Value::Number(_) | Value::Null => number(generator).into(),
        Value::String(old) => {
            let text = TEXTS.get(generator.below(TEXTS.len())).copied().unwrap_or_default();
            match generator.below(4) {
                0 => text.into(),
                1 => format!("{old}{text}").into(),
                2 => old.repeat(1 + generator.below(200)).into(),
                _ => old.chars().take(generator.below(old.len() + 1)).collect::<String>().into(),
            }
        }
        Value::Array(old) => match (generator.below(3), old.first()) {
            (0, Some(first)) => vec![first.clone(); generator.below(300)].into(),
            (1, _) => old.iter().take(generator.below(old.len() + 1)).cloned().collect(),
            _ => Value::Array(Vec::new()),
        },
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(key, value)| (key.clone(), another(value, generator))).collect(),
        ),
    }
}

/// Returns whether a run with this outcome is a defect of the plugin.
pub(super) fn is_defect(outcome: &Outcome) -> bool {
    matches!(outcome.class(), Class::Trapped | Class::Limit)
}

/// Returns the step of a scenario that calls the hook in the same way: the keys of `value` that
/// differ from the sample's.
pub(super) fn step_text(hook: HookKind, sample: &Value, value: &Value) -> String {
    let mut step = Map::new();
    step.insert("hook".to_owned(), hook.as_str().into());
    if hook == HookKind::BuilderSelection {
        for key in ["candidate", "machines", "local"] {
            if sample.get(key) != value.get(key)
                && let Some(value) = value.get(key)
            {
                step.insert(key.to_owned(), with_dashes(without_null(value.clone())));
            }
        }
    } else {
        let mut event = Map::new();
        let none = Map::new();
        let fields = |value: &Value| value.as_object().unwrap_or(&none).clone();
        let inner = |value: &Value| value.get("hook").map(fields).unwrap_or_default();
        for (old, new) in [(fields(sample), fields(value)), (inner(sample), inner(value))] {
            for (key, value) in new {
                if key != "hook" && old.get(&key) != Some(&value) {
                    event.insert(key, without_null(value));
                }
            }
        }
        step.insert("event".to_owned(), Value::Object(event));
    }
    let scenario = serde_json::json!({ "format": 1, "step": [step] });
    toml::to_string_pretty(&scenario).unwrap_or_default()
}

/// TOML has no null; a key that is left out is none.
fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_null(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_null).collect()),
        other => other,
    }
}

fn with_dashes(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, value)| (key.replace('_', "-"), with_dashes(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(with_dashes).collect()),
        other => other,
    }
}

/// Returns the JSON of what a hook is called with, and a function that reads it again.
pub(super) fn sample(hook: HookKind) -> Option<Value> {
    let (_, input) = Step::of_sample(hook).input(&[hook]).ok()?;
    match input {
        Input::Event(event, _) => serde_json::to_value(event).ok(),
        Input::Question(question) => Some(serde_json::json!({
            "candidate": question.candidate,
            "machines": question.machines,
            "local": question.local,
        })),
    }
}

/// Reads what [`changed`] returned; none if it is not a value of the hook's types.
pub(super) fn input(hook: HookKind, value: &Value) -> Option<Input> {
    if hook != HookKind::BuilderSelection {
        let event = serde_json::from_value(value.clone()).ok()?;
        return Some(Input::Event(Box::new(event), 1));
    }
    let (_, sample) = Step::of_sample(hook).input(&[hook]).ok()?;
    let Input::Question(mut question) = sample else { return None };
    let field = |key: &str| value.get(key).cloned().unwrap_or_default();
    question.candidate = serde_json::from_value(field("candidate")).ok()?;
    question.machines = serde_json::from_value(field("machines")).ok()?;
    question.local = serde_json::from_value(field("local")).ok()?;
    Some(Input::Question(question))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_changes_of_a_sample_are_events_and_the_same_seed_makes_the_same() {
        for hook in HookKind::ALL {
            let sample = sample(hook).unwrap();
            assert!(input(hook, &sample).is_some());
            let mut generator = Generator::new(7);
            let all: Vec<_> = (0..200).map(|_| changes(&sample, &mut generator)).collect();
            let good = all.iter().filter(|it| input(hook, &changed(&sample, it)).is_some());
            assert!(good.count() > 60, "{hook}");
            let mut again = Generator::new(7);
            assert_eq!(changes(&sample, &mut again), all[0]);
        }
    }

    #[test]
    fn a_finding_is_a_scenario_with_the_changed_keys() {
        let sample = sample(HookKind::PostBuild).unwrap();
        let mut value = sample.clone();
        value["hook"]["outputs"] = Value::Array(Vec::new());
        let text = step_text(HookKind::PostBuild, &sample, &value);
        insta::assert_snapshot!(text, @r#"
format = 1

[[step]]
hook = "post-build"

[step.event]
outputs = []
"#);
    }
}
