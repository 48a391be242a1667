//! Compares a value with a well-formed schema, and describes the first difference.
//!
//! `format`, `contentEncoding`, `contentMediaType` and `contentSchema` are annotations and are not
//! checked, as in draft 2020-12.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

use super::check::CheckedSchema;
use super::shown;

/// Maximum number of alternatives, allowed values and known keys in one message.
const MAX_LISTED: usize = 20;
/// Maximum distance of a quotient from a whole number, because division rounds.
const ROUNDING: f64 = 1e-9;

/// The first difference between a value and its schema.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// The keys that lead to the value.
    pub(super) keys: Vec<String>,
    pub(super) problem: String,
    /// The fix, as an instruction.
    pub(super) fix: String,
}

type Compared = Result<(), Mismatch>;

/// The position of a value in the table.
#[derive(Clone, Copy)]
struct ValuePath<'p> {
    parent: Option<&'p ValuePath<'p>>,
    key: &'p str,
}

impl ValuePath<'_> {
    const TOP: Self = ValuePath { parent: None, key: "" };

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = std::iter::successors(Some(self), |place| place.parent)
            .filter(|place| place.parent.is_some())
            .map(|place| place.key.to_owned())
            .collect();
        keys.reverse();
        keys
    }

    fn differs(&self, problem: String) -> Compared {
        Err(Mismatch { keys: self.keys(), problem, fix: "change it".to_owned() })
    }
}

/// Returns the first difference.
pub(super) fn difference(checked: &CheckedSchema<'_>, value: &Value) -> Option<Mismatch> {
    Validator { checked }.compare(checked.root, value, &ValuePath::TOP).err()
}

struct Validator<'a> {
    checked: &'a CheckedSchema<'a>,
}

impl Validator<'_> {
    fn allows(&self, schema: &Value, value: &Value) -> bool {
        self.compare(schema, value, &ValuePath::TOP).is_ok()
    }

    fn compare(&self, schema: &Value, value: &Value, place: &ValuePath<'_>) -> Compared {
        let keywords = match schema {
            Value::Object(keywords) => keywords,
            Value::Bool(false) => return place.differs("no value is allowed here".to_owned()),
            _ => return Ok(()),
        };
        if let Some(target) = keywords.get("$ref").and_then(Value::as_str)
            && let Some(target) = self.checked.root.pointer(target.trim_start_matches('#'))
        {
            self.compare(target, value, place)?;
        }
        generic(keywords, value, place)?;
        match value {
            Value::Number(number) => numeric(keywords, number, place)?,
            Value::String(text) => self.text(keywords, text, place)?,
            Value::Array(items) => self.items(keywords, items, value, place)?,
            Value::Object(table) => self.table(keywords, table, value, place)?,
            Value::Null | Value::Bool(_) => {}
        }
        self.combined(keywords, value, place)
    }

    fn text(&self, keywords: &Map<String, Value>, text: &str, place: &ValuePath<'_>) -> Compared {
        let length = text.chars().count();
        let value = || shown(&Value::from(text));
        if let Some(limit) = above(keywords, "maxLength", length) {
            return place.differs(format!("{} has more than {limit} characters", value()));
        }
        if let Some(limit) = under(keywords, "minLength", length) {
            return place.differs(format!("{} has fewer than {limit} characters", value()));
        }
        match keywords.get("pattern").and_then(Value::as_str) {
            Some(pattern) if !self.checked.matches(pattern, text) => {
                place.differs(format!("{} does not match the pattern `{pattern}`", value()))
            }
            _ => Ok(()),
        }
    }

    fn items(
        &self,
        keywords: &Map<String, Value>,
        items: &[Value],
        value: &Value,
        place: &ValuePath<'_>,
    ) -> Compared {
        if let Some(limit) = above(keywords, "maxItems", items.len()) {
            return place.differs(format!("{} has more than {limit} items", shown(value)));
        }
        if let Some(limit) = under(keywords, "minItems", items.len()) {
            return place.differs(format!("{} has fewer than {limit} items", shown(value)));
        }
        if keywords.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut before = items.iter().enumerate();
            if let Some((_, twice)) = before
                .find(|(index, item)| items.iter().take(*index).any(|other| equal(item, other)))
            {
                return place.differs(format!("it contains {} twice", shown(twice)));
            }
        }
        // Drafts before 2020-12 have the list in `items`, and the rest in `additionalItems`.
        let (first, rest) = match keywords.get("items") {
            Some(Value::Array(first)) => (Some(first), keywords.get("additionalItems")),
            rest => (keywords.get("prefixItems").and_then(Value::as_array), rest),
        };
        let first = first.map(Vec::as_slice).unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let Some(schema) = first.get(index).or(rest) else { continue };
            let key = index.to_string();
            self.compare(schema, item, &ValuePath { parent: Some(place), key: &key })?;
        }
        let Some(schema) = keywords.get("contains") else { return Ok(()) };
        let found = items.iter().filter(|item| self.allows(schema, item)).count();
        if let Some(limit) = above(keywords, "maxContains", found) {
            return place.differs(format!(
                "{} contains more than {limit} items that match the required schema",
                shown(value)
            ));
        }
        let least = keywords.get("minContains").cloned().unwrap_or_else(|| Value::from(1));
        match least.as_number() {
            Some(limit) if compare(&Number::from(found), limit) == Ordering::Less => {
                place.differs(format!(
                    "{} contains fewer than {limit} items that match the required schema",
                    shown(value)
                ))
            }
            _ => Ok(()),
        }
    }

    fn table(
        &self,
        keywords: &Map<String, Value>,
        table: &Map<String, Value>,
        value: &Value,
        place: &ValuePath<'_>,
    ) -> Compared {
        let properties = keywords.get("properties").and_then(Value::as_object);
        let patterns = keywords.get("patternProperties").and_then(Value::as_object);
        let known = || {
            let names = properties.into_iter().flatten().map(|(name, _)| name.as_str());
            let names = listed(names.map(ToOwned::to_owned));
            if names.is_empty() { String::new() } else { format!(" (known keys: {names})") }
        };
        for (key, value) in table {
            let below = ValuePath { parent: Some(place), key };
            if let Some(schema) = keywords.get("propertyNames") {
                let name = Value::from(key.as_str());
                self.compare(schema, &name, &below).map_err(|difference| Mismatch {
                    problem: format!("the name of the key: {}", difference.problem),
                    ..difference
                })?;
            }
            let mut is_known = false;
            if let Some(schema) = properties.and_then(|properties| properties.get(key)) {
                is_known = true;
                self.compare(schema, value, &below)?;
            }
            for (_, schema) in patterns
                .into_iter()
                .flatten()
                .filter(|(pattern, _)| self.checked.matches(pattern, key))
            {
                is_known = true;
                self.compare(schema, value, &below)?;
            }
            match keywords.get("additionalProperties") {
                Some(Value::Bool(false)) if !is_known => {
                    return Err(Mismatch {
                        keys: below.keys(),
                        problem: "unknown key".to_owned(),
                        fix: format!("change or remove it{}", known()),
                    });
                }
                Some(schema) if !is_known => self.compare(schema, value, &below)?,
                _ => {}
            }
        }
        let missing = |problem: String| Mismatch {
            keys: place.keys(),
            problem,
            fix: format!("add it{}", known()),
        };
        for name in names(keywords.get("required")) {
            if !table.contains_key(name) {
                return Err(missing(format!("the required key \"{name}\" is missing")));
            }
        }
        for (key, needed) in ["dependentRequired", "dependencies"]
            .iter()
            .filter_map(|keyword| keywords.get(*keyword)?.as_object())
            .flatten()
            .filter(|(key, _)| table.contains_key(*key))
        {
            if let Some(name) = names(Some(needed)).find(|name| !table.contains_key(*name)) {
                let problem = format!("the key \"{name}\" is missing, which \"{key}\" requires");
                return Err(missing(problem));
            }
        }
        if let Some(limit) = above(keywords, "maxProperties", table.len()) {
            return place.differs(format!("{} has more than {limit} keys", shown(value)));
        }
        if let Some(limit) = under(keywords, "minProperties", table.len()) {
            return place.differs(format!("{} has fewer than {limit} keys", shown(value)));
        }
        Ok(())
    }

    /// Compares with the schemas that apply to the value as a whole.
    fn combined(
        &self,
        keywords: &Map<String, Value>,
        value: &Value,
        place: &ValuePath<'_>,
    ) -> Compared {
        let schemas = |keyword: &str| keywords.get(keyword).and_then(Value::as_array);
        for schema in schemas("allOf").into_iter().flatten() {
            self.compare(schema, value, place)?;
        }
        if let Some(schemas) = schemas("anyOf") {
            self.number_of_matches(schemas, value, place)?;
        }
        if let Some(schemas) = schemas("oneOf")
            && self.number_of_matches(schemas, value, place)? > 1
        {
            return place.differs(format!(
                "{} matches more than one alternative, but must match exactly one",
                shown(value)
            ));
        }
        if keywords.get("not").is_some_and(|schema| self.allows(schema, value)) {
            return place.differs(format!("{} is not allowed", shown(value)));
        }
        if let Some(condition) = keywords.get("if") {
            let branch = if self.allows(condition, value) { "then" } else { "else" };
            if let Some(schema) = keywords.get(branch) {
                self.compare(schema, value, place)?;
            }
        }
        let Value::Object(table) = value else { return Ok(()) };
        ["dependentSchemas", "dependencies"]
            .iter()
            .filter_map(|keyword| keywords.get(*keyword)?.as_object())
            .flatten()
            .filter(|(key, _)| table.contains_key(*key))
            .try_for_each(|(_, schema)| self.compare(schema, value, place))
    }

    /// Returns how many of the schemas allow the value. Zero is reported as a difference.
    fn number_of_matches(
        &self,
        schemas: &[Value],
        value: &Value,
        place: &ValuePath<'_>,
    ) -> Result<usize, Mismatch> {
        let mut problems = Vec::new();
        for schema in schemas {
            problems.extend(self.compare(schema, value, place).err());
        }
        if problems.len() < schemas.len() {
            return Ok(schemas.len() - problems.len());
        }
        // The alternative that fails at the deepest key is probably the intended one.
        let depth = |difference: &Mismatch| difference.keys.len();
        let deepest = problems.iter().map(depth).max().unwrap_or_default();
        if deepest > place.keys().len()
            && problems.iter().filter(|problem| depth(problem) == deepest).count() == 1
        {
            problems.retain(|problem| depth(problem) == deepest);
            return problems.pop().map_or(Ok(0), Err);
        }
        let mut texts: Vec<String> = problems.into_iter().map(|it| it.problem).collect();
        texts.dedup();
        texts.truncate(MAX_LISTED);
        place.differs(texts.join(", and ")).map(|()| 0)
    }
}

/// Compares with the keywords that apply to values of each type.
fn generic(keywords: &Map<String, Value>, value: &Value, place: &ValuePath<'_>) -> Compared {
    let types: Vec<&str> = match keywords.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        types => names(types).collect(),
    };
    if !types.is_empty() && !types.iter().any(|name| is_of_type(value, name)) {
        let articles: Vec<String> = types.iter().map(|name| with_article(name)).collect();
        return place.differs(format!("{} is not {}", shown(value), articles.join(" or ")));
    }
    if let Some(Value::Array(allowed)) = keywords.get("enum")
        && !allowed.iter().any(|allowed| equal(allowed, value))
    {
        let allowed = listed(allowed.iter().map(shown));
        return place.differs(format!("{} is not one of {allowed}", shown(value)));
    }
    match keywords.get("const") {
        Some(only) if !equal(only, value) => place.differs(format!(
            "{} is not {}, the only allowed value",
            shown(value),
            shown(only)
        )),
        _ => Ok(()),
    }
}

fn numeric(keywords: &Map<String, Value>, number: &Number, place: &ValuePath<'_>) -> Compared {
    let limit = |keyword: &str| keywords.get(keyword).and_then(Value::as_number);
    let order = |limit: &Number| compare(number, limit);
    let refused = [
        ("minimum", "less than the minimum of", [Ordering::Less, Ordering::Less]),
        ("maximum", "more than the maximum of", [Ordering::Greater, Ordering::Greater]),
        ("exclusiveMinimum", "not more than", [Ordering::Less, Ordering::Equal]),
        ("exclusiveMaximum", "not less than", [Ordering::Greater, Ordering::Equal]),
    ];
    for (keyword, text, refused) in refused {
        if let Some(limit) = limit(keyword).filter(|limit| refused.contains(&order(limit))) {
            return place.differs(format!("{number} is {text} {limit}"));
        }
    }
    match limit("multipleOf") {
        Some(unit) if !is_multiple(number, unit) => {
            place.differs(format!("{number} is not a multiple of {unit}"))
        }
        _ => Ok(()),
    }
}

/// Returns the limit if `count` exceeds it.
fn above<'k>(keywords: &'k Map<String, Value>, keyword: &str, count: usize) -> Option<&'k Number> {
    let limit = keywords.get(keyword)?.as_number()?;
    (compare(&Number::from(count), limit) == Ordering::Greater).then_some(limit)
}

/// Returns the limit if `count` is below it.
fn under<'k>(keywords: &'k Map<String, Value>, keyword: &str, count: usize) -> Option<&'k Number> {
    let limit = keywords.get(keyword)?.as_number()?;
    (compare(&Number::from(count), limit) == Ordering::Less).then_some(limit)
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
        Value::Number(number) => {
            name == "number" || name == "integer" && (whole(number).is_some() || is_whole(number))
        }
    }
}

fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        "array" | "integer" | "object" => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

fn whole(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

fn is_whole(number: &Number) -> bool {
    number.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn compare(one: &Number, other: &Number) -> Ordering {
    match (whole(one), whole(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => one.as_f64().partial_cmp(&other.as_f64()).unwrap_or(Ordering::Equal),
    }
}

fn is_multiple(number: &Number, unit: &Number) -> bool {
    if let (Some(number), Some(unit)) = (whole(number), whole(unit)) {
        return number.checked_rem(unit) == Some(0);
    }
    let (Some(number), Some(unit)) = (number.as_f64(), unit.as_f64()) else { return false };
    let quotient = number / unit;
    (quotient - quotient.round()).abs() <= ROUNDING
}

/// Compares two values as JSON Schema does: 1 and 1.0 are the same number.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare(one, other) == Ordering::Equal,
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|it| equal(one, it)))
        }
        _ => one == other,
    }
}

fn names(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn listed(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    let shown = texts.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match texts.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
