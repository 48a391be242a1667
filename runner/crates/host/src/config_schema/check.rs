//! Checks that a schema is well-formed: each keyword has a value of the right type, and each
//! pattern compiles.

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};
use serde_json::{Number, Value};

use super::shown;

/// Maximum size of a compiled pattern in bytes; a pattern for a store path takes a few thousand.
const MAX_PATTERN: usize = 1 << 20;

/// The supported drafts. All keywords have the same meaning in each of them, except for `items` as
/// a list, which only drafts before 2020-12 allow.
const DRAFTS: [&str; 4] = [
    "json-schema.org/draft/2020-12/schema",
    "json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft-07/schema",
    "json-schema.org/draft-06/schema",
];
/// The types of JSON Schema.
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// A schema that was found to be well-formed.
pub(super) struct CheckedSchema<'a> {
    pub(super) root: &'a Value,
    patterns: HashMap<&'a str, Regex>,
}

/// What is wrong with a schema, and the JSON pointer to it.
pub(super) struct Malformed {
    pub(super) pointer: String,
    pub(super) problem: String,
}

impl<'a> CheckedSchema<'a> {
    /// Checks a schema. Its references must be finite, and its size and depth within limits.
    pub(super) fn new(root: &'a Value) -> Result<Self, Malformed> {
        let mut checked = Self { root, patterns: HashMap::new() };
        checked.schema(root, "")?;
        Ok(checked)
    }

    pub(super) fn matches(&self, pattern: &str, text: &str) -> bool {
        self.patterns.get(pattern).is_some_and(|regex| regex.is_match(text))
    }

    fn schema(&mut self, schema: &'a Value, at: &str) -> Result<(), Malformed> {
        match schema {
            Value::Bool(_) => Ok(()),
            Value::Object(keys) => {
                keys.iter().try_for_each(|(key, value)| self.keyword(key, value, &below(at, key)))
            }
            other => Err(malformed(at, other, "a schema (an object or a boolean)")),
        }
    }

    fn keyword(&mut self, key: &str, value: &'a Value, at: &str) -> Result<(), Malformed> {
        let must = |right: bool, expected: &str| {
            if right { Ok(()) } else { Err(malformed(at, value, expected)) }
        };
        match key {
            "$ref" => {
                let pointer = value.as_str().and_then(|target| target.strip_prefix('#'));
                match pointer.and_then(|pointer| Some((pointer, self.root.pointer(pointer)?))) {
                    Some((pointer, target)) => self.schema(target, pointer),
                    None => must(false, "a reference within the schema"),
                }
            }
            "$schema" => must(
                value.as_str().is_some_and(is_known_draft),
                "a supported draft, such as `https://json-schema.org/draft/2020-12/schema`",
            ),
            "type" => {
                must(is_type(value), &format!("one of the types {}, or a list", TYPES.join(", ")))
            }
            "enum" | "examples" => must(value.is_array(), "a list"),
            "title" | "description" | "$comment" | "$id" | "format" | "contentEncoding"
            | "contentMediaType" => must(value.is_string(), "a string"),
            "deprecated" | "readOnly" | "writeOnly" | "uniqueItems" => {
                must(value.is_boolean(), "a boolean")
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                must(value.is_number(), "a number")
            }
            "multipleOf" => must(is_above_zero(value), "a number above 0"),
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minContains" | "maxContains"
            | "minProperties" | "maxProperties" => {
                must(is_count(value), "a whole number of at least 0")
            }
            "required" => must(is_names(value), "a list of unique strings"),
            "dependentRequired" => must(
                value.as_object().is_some_and(|keys| keys.values().all(is_names)),
                "an object of lists of unique strings",
            ),
            "pattern" => match value {
                Value::String(pattern) => self.pattern(pattern, at),
                other => Err(malformed(at, other, "a string")),
            },
            "patternProperties" => {
                value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .try_for_each(|(pattern, _)| self.pattern(pattern, &below(at, pattern)))?;
                self.named(value, at)
            }
            "$defs" | "definitions" | "properties" | "dependentSchemas" => self.named(value, at),
            "dependencies" => match value {
                Value::Object(keys) => keys
                    .iter()
                    .filter(|(_, value)| !is_names(value))
                    .try_for_each(|(key, value)| self.schema(value, &below(at, key))),
                other => Err(malformed(at, other, "an object")),
            },
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => self.list(value, at),
            "items" if value.is_array() && self.is_before_2020() => self.list(value, at),
            "items"
            | "additionalItems"
            | "additionalProperties"
            | "contains"
            | "contentSchema"
            | "propertyNames"
            | "not"
            | "if"
            | "then"
            | "else" => self.schema(value, at),
            _ => Ok(()),
        }
    }

    fn named(&mut self, value: &'a Value, at: &str) -> Result<(), Malformed> {
        let Value::Object(named) = value else {
            return Err(malformed(at, value, "an object of schemas"));
        };
        named.iter().try_for_each(|(name, schema)| self.schema(schema, &below(at, name)))
    }

    fn list(&mut self, value: &'a Value, at: &str) -> Result<(), Malformed> {
        match value {
            Value::Array(schemas) if !schemas.is_empty() => {
                schemas.iter().enumerate().try_for_each(|(index, schema)| {
                    self.schema(schema, &below(at, &index.to_string()))
                })
            }
            other => Err(malformed(at, other, "a list of at least one schema")),
        }
    }

    fn pattern(&mut self, pattern: &'a str, at: &str) -> Result<(), Malformed> {
        if !self.patterns.contains_key(pattern) {
            let regex = compiled(pattern).map_err(|reason| Malformed {
                pointer: at.to_owned(),
                problem: format!(
                    "{} is not a supported regular expression: {reason}",
                    shown(&Value::from(pattern))
                ),
            })?;
            self.patterns.insert(pattern, regex);
        }
        Ok(())
    }

    /// Returns whether the schema names a draft in which `items` may be a list.
    fn is_before_2020(&self) -> bool {
        let draft = self.root.get("$schema").and_then(Value::as_str);
        draft.is_some_and(|draft| !draft.contains("2020-12"))
    }
}

/// Compiles a regular expression of ECMAScript.
fn compiled(pattern: &str) -> Result<Regex, String> {
    let translated = jsonschema_regex::to_rust_regex(pattern).map_err(|()| "its syntax".to_owned());
    // A failed translation has no reason, so the error of the regex compiler is reported.
    let text = translated.as_deref().unwrap_or(pattern);
    let regex = RegexBuilder::new(text).size_limit(MAX_PATTERN).build();
    let regex = regex.map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("it takes more than {} KiB when compiled", limit >> 10)
        }
        error => {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    })?;
    translated.map(|_| regex)
}

fn malformed(at: &str, value: &Value, expected: &str) -> Malformed {
    let problem = format!("{} is not {expected}", shown(value));
    Malformed { pointer: at.to_owned(), problem }
}

/// Returns the JSON pointer to a key below `at`.
fn below(at: &str, key: &str) -> String {
    format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn is_known_draft(draft: &str) -> bool {
    let draft = draft.trim_end_matches('#');
    let name = draft.strip_prefix("https://").or_else(|| draft.strip_prefix("http://"));
    name.is_some_and(|name| DRAFTS.contains(&name))
}

fn is_type(value: &Value) -> bool {
    match value {
        Value::String(name) => TYPES.contains(&name.as_str()),
        Value::Array(names) => {
            is_names(value)
                && !names.is_empty()
                && names.iter().all(|name| name.as_str().is_some_and(|name| TYPES.contains(&name)))
        }
        _ => false,
    }
}

fn is_names(value: &Value) -> bool {
    let Value::Array(names) = value else { return false };
    let mut seen = std::collections::HashSet::new();
    names.iter().all(|name| name.as_str().is_some_and(|name| seen.insert(name)))
}

fn is_count(value: &Value) -> bool {
    let number = value.as_number().and_then(Number::as_f64);
    number.is_some_and(|number| number >= 0.0 && number.fract() == 0.0)
}

fn is_above_zero(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}
