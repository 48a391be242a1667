//! A plugin's configuration schema. It is untrusted data that is executed, because a JSON schema is
//! a program.
//!
//! Schemas are applied only by the contained process that examines a component
//! ([`super::examine`]), where time and memory are bounded, and never by a process that may be
//! root. The cost of a schema is bounded before it is applied, so that the error names the cause.
//! References must be finite and must not multiply: a schema of forty definitions, each of which
//! references the previous one twice, takes 10^12 checks. References must stay inside the schema.
//! Keywords whose cost grows with each level are refused. The number of patterns is limited, and
//! they are matched in linear time. Nothing is ever fetched. Then the schema is checked ([`check`])
//! and compared with the table ([`validate`]).

mod check;
#[cfg(test)]
mod tests;
mod validate;

use serde_json::Value;

use check::{CheckedSchema, Malformed};

/// Maximum number of parts of a schema with all references followed. A plugin with a hundred keys
/// has less than a thousand.
const MAX_PARTS: usize = 10_000;
/// Maximum depth of a schema with all references followed. serde_json has the same limit for JSON.
const MAX_DEPTH: usize = 128;
/// Maximum number of patterns with all references followed. Together they take little more than 100
/// MiB in the worst case.
const MAX_PATTERNS: usize = 100;
/// Maximum length in bytes of a message about a value, which may list the allowed values.
const MAX_MESSAGE: usize = 4 << 10;
/// Maximum length in bytes of a value in a message.
const MAX_SHOWN: usize = 200;

/// Keywords that are not supported. The first two double the time for each level of nesting; the
/// others change the meaning of references.
const UNSUPPORTED: [&str; 8] = [
    "unevaluatedProperties",
    "unevaluatedItems",
    "$anchor",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
];
/// Keywords whose value maps names to schemas.
const MAPS: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];
/// Keywords whose value is data.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// Returns the first part of `table` that the schema does not allow: the keys that lead to it, and
/// a fragment with the problem and the fix for the user.
///
/// # Errors
/// Returns a fragment with the fix for the schema's author if the schema is not valid or not
/// supported.
pub fn violation(schema: &Value, table: &Value) -> Result<Option<(Vec<String>, String)>, String> {
    SchemaMeasure { root: schema, parts: 0, patterns: 0 }.schema(schema, 0)?;
    let checked = CheckedSchema::new(schema).map_err(|Malformed { pointer, problem }| {
        let place = if pointer.is_empty() { "as a whole" } else { &pointer };
        format!(
            "has a `config_schema` that is not a valid JSON schema ({}); its author must correct it",
            one_line(&format!("{place}: {problem}"))
        )
    })?;
    Ok(validate::difference(&checked, table).map(|difference| {
        let message = format!("{}; {}", one_line(&difference.problem), one_line(&difference.fix));
        (difference.keys, message)
    }))
}

fn one_line(message: &str) -> String {
    cut(&message.replace('\n', " "), MAX_MESSAGE)
}

fn cut(text: &str, length: usize) -> String {
    let end = text.floor_char_boundary(length);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text.get(..end).unwrap_or_default())
}

/// Returns the value as JSON, truncated if it is long. The time does not depend on the size of the
/// value.
fn shown(value: &Value) -> String {
    let mut beginning = TruncatedWriter(Vec::new());
    // Writing fails once the limit is reached.
    let _stopped = serde_json::to_writer(&mut beginning, value);
    cut(&String::from_utf8_lossy(&beginning.0), MAX_SHOWN)
}

/// A writer that accepts slightly more than is shown.
struct TruncatedWriter(Vec<u8>);

impl std::io::Write for TruncatedWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min((MAX_SHOWN + 4).saturating_sub(self.0.len()));
        self.0.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Measures a schema with its references followed.
struct SchemaMeasure<'a> {
    root: &'a Value,
    parts: usize,
    patterns: usize,
}

impl<'a> SchemaMeasure<'a> {
    fn part(&mut self, depth: usize) -> Result<(), String> {
        self.parts += 1;
        if self.parts > MAX_PARTS || depth >= MAX_DEPTH {
            return Err(format!(
                "has a configuration schema whose references do not end, or grow beyond {MAX_PARTS} parts or {MAX_DEPTH} levels; its \
                 author must write it without recursion"
            ));
        }
        Ok(())
    }

    fn patterns(&mut self, more: usize) -> Result<(), String> {
        self.patterns += more;
        if self.patterns > MAX_PATTERNS {
            return Err(format!(
                "has a configuration schema with more than {MAX_PATTERNS} patterns; its author must use fewer"
            ));
        }
        Ok(())
    }

    /// Measures a schema or a list of schemas. Unknown keywords may hold schemas too.
    fn schema(&mut self, schema: &'a Value, depth: usize) -> Result<(), String> {
        self.part(depth)?;
        match schema {
            Value::Array(items) => items.iter().try_for_each(|item| self.schema(item, depth + 1)),
            Value::Object(keys) => {
                keys.iter().try_for_each(|(key, value)| self.keyword(key, value, depth))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn keyword(&mut self, key: &str, value: &'a Value, depth: usize) -> Result<(), String> {
        match (key, value) {
            ("$ref", Value::String(target)) => {
                self.schema(referenced(self.root, target)?, depth + 1)
            }
            ("$id" | "id", Value::String(_)) if depth > 0 => Err(foreign(key)),
            (key, _) if UNSUPPORTED.contains(&key) => Err(format!(
                "has a configuration schema with the keyword `{key}`, which hookrun does not support; its author must write it \
                 without (`additionalProperties` and `items` are supported)"
            )),
            (key, Value::Object(named)) if MAPS.contains(&key) => {
                if key == "patternProperties" {
                    self.patterns(named.len())?;
                }
                self.part(depth + 1)?;
                named.values().try_for_each(|schema| self.schema(schema, depth + 2))
            }
            (key, data) if DATA.contains(&key) => self.data(data, depth + 1),
            ("pattern", _) => {
                self.patterns(1)?;
                self.part(depth + 1)
            }
            (_, value) => self.schema(value, depth + 1),
        }
    }

    fn data(&mut self, data: &Value, depth: usize) -> Result<(), String> {
        self.part(depth)?;
        match data {
            Value::Array(items) => items.iter().try_for_each(|item| self.data(item, depth + 1)),
            Value::Object(keys) => keys.values().try_for_each(|value| self.data(value, depth + 1)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }
}

/// Returns the target of a reference such as `#/$defs/name`.
fn referenced<'a>(root: &'a Value, target: &str) -> Result<&'a Value, String> {
    let pointer =
        target.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
    pointer.and_then(|pointer| root.pointer(pointer)).ok_or_else(|| foreign(target))
}

fn foreign(what: &str) -> String {
    let what = what.escape_debug();
    format!(
        "has a configuration schema that refers to `{what}`; its author must write references as `#/$defs/NAME`, to what is in it"
    )
}

#[cfg(test)]
mod bounds {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_violation_is_described_with_its_keys() {
        let schema = json!({
            "$defs": { "size": { "type": "integer" } },
            "properties": { "a": { "properties": { "b/c": { "$ref": "#/$defs/size" } } } },
        });
        assert_eq!(violation(&schema, &json!({ "a": { "b/c": 1 } })), Ok(None));
        let (keys, message) = violation(&schema, &json!({ "a": { "b/c": "x" } })).unwrap().unwrap();
        assert_eq!(keys, ["a", "b/c"]);
        insta::assert_snapshot!(message, @r#""x" is not an integer; change it"#);

        let schema =
            json!({ "properties": { "to": { "type": "array" } }, "additionalProperties": false });
        let (keys, message) = violation(&schema, &json!({ "too": 1 })).unwrap().unwrap();
        assert_eq!(keys, ["too"]);
        insta::assert_snapshot!(message, @"unknown key; change or remove it (known keys: to)");
    }

    #[test]
    fn schemas_with_unbounded_cost_or_external_references_are_refused() {
        let refused = |schema: Value| violation(&schema, &json!({})).unwrap_err();
        insta::assert_snapshot!(refused(json!({ "allOf": [{ "$ref": "#" }] })), @"has a configuration schema whose references do not end, or grow beyond 10000 parts or 128 levels; its author must write it without recursion");
        insta::assert_snapshot!(refused(json!({ "$ref": "http://example.org/schema.json" })), @"has a configuration schema that refers to `http://example.org/schema.json`; its author must write references as `#/$defs/NAME`, to what is in it");
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "$id": "file:///etc/", "$ref": "#/passwd" } } })), @"has a configuration schema that refers to `$id`; its author must write references as `#/$defs/NAME`, to what is in it");
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } })), @r#"has a `config_schema` that is not a valid JSON schema (/properties/a/pattern: "((a{1000}){1000}){1000}" is not a supported regular expression: it takes more than 1024 KiB when compiled); its author must correct it"#);
        // Look-around makes matching exponential.
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "pattern": "^(?=a)(a+)+$" } } })), @r#"has a `config_schema` that is not a valid JSON schema (/properties/a/pattern: "^(?=a)(a+)+$" is not a supported regular expression: look-around, including look-ahead and look-behind, is not supported); its author must correct it"#);
    }

    #[test]
    fn keywords_that_are_not_supported_are_named() {
        let refused = |schema: Value| violation(&schema, &json!({})).unwrap_err();
        for keyword in UNSUPPORTED {
            let message = refused(json!({ "properties": { "a": { keyword: false } } }));
            assert!(message.contains(&format!("the keyword `{keyword}`")), "{message}");
        }
        insta::assert_snapshot!(refused(json!({ "unevaluatedProperties": false })), @"has a configuration schema with the keyword `unevaluatedProperties`, which hookrun does not support; its author must write it without (`additionalProperties` and `items` are supported)");
        // The same words are allowed as names and values.
        let schema = json!({
            "$id": "https://example.org/schema",
            "properties": { "unevaluatedItems": { "default": { "$anchor": 1, "$id": "x" } } },
            "examples": [{ "$dynamicRef": "x" }],
        });
        assert_eq!(violation(&schema, &json!({})), Ok(None));
    }

    #[test]
    fn too_many_patterns_are_refused() {
        let named = |count: usize, schema: Value| -> Value {
            (0..count).map(|number| (number.to_string(), schema.clone())).collect()
        };
        let pattern = json!({ "pattern": "^a" });
        let few = json!({ "properties": named(MAX_PATTERNS, pattern.clone()) });
        assert_eq!(violation(&few, &json!({})), Ok(None));
        for many in [
            json!({ "properties": named(MAX_PATTERNS + 1, pattern.clone()) }),
            json!({ "patternProperties": named(MAX_PATTERNS + 1, json!(true)) }),
            json!({ "$defs": { "p": pattern }, "properties": named(MAX_PATTERNS + 1, json!({ "$ref": "#/$defs/p" })) }),
        ] {
            insta::allow_duplicates! {
                insta::assert_snapshot!(violation(&many, &json!({})).unwrap_err(), @"has a configuration schema with more than 100 patterns; its author must use fewer");
            }
        }
    }

    proptest! {
        /// Definitions that reference each other in any way are answered quickly.
        #[test]
        fn references_in_any_order(edges in prop::collection::vec((0..8_usize, 0..8_usize), 0..24)) {
            let mut schema = json!({ "$defs": {}, "$ref": "#/$defs/0" });
            for name in 0..8 {
                let targets = edges.iter().filter(|(from, _)| *from == name);
                let all: Vec<Value> = targets.map(|(_, to)| json!({ "$ref": format!("#/$defs/{to}") })).collect();
                schema["$defs"][name.to_string()] = if all.is_empty() { json!(true) } else { json!({ "allOf": all }) };
            }
            let _answered = violation(&schema, &json!({}));
        }
    }
}
