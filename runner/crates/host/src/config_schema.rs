//! A plugin's configuration schema: untrusted data that is executed, because a JSON schema is a
//! program.
//!
//! Applied by the contained process that examines a component ([`super::examine`]), where time and
//! memory are bounded; never by a process that may be root. Before a schema is applied, its
//! cost is bounded here, so that the error names the cause: references must end and must not
//! multiply (a schema of forty definitions, each naming the one before twice, is a billion of
//! billions of checks), they stay inside the schema, keywords whose cost grows with each level are
//! refused, and patterns are few and matched by an engine that takes linear time. Nothing is
//! ever fetched. Then the schema is checked ([`check`]) and compared with the table ([`validate`]).

mod check;
#[cfg(test)]
mod tests;
mod validate;

use serde_json::Value;

use check::{Checked, Malformed};

/// Parts of a schema with all its references followed. A plugin with a hundred keys has less than a
/// thousand.
const MAX_PARTS: usize = 10_000;
/// Levels of a schema, references followed; serde_json reads no deeper JSON either.
const MAX_DEPTH: usize = 128;
/// Patterns, references followed: all together then take little more than 100 MiB at worst.
const MAX_PATTERNS: usize = 100;
/// Bytes of a message about a value, which may repeat what would have been allowed.
const MAX_MESSAGE: usize = 4 << 10;
/// Bytes of a value in a message.
const MAX_SHOWN: usize = 200;

/// Keywords that are not supported: the first two take twice the time for each level that they are
/// nested, the others make references mean something else than their text says.
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

/// Returns the first thing in `table` that the schema does not allow: the path of keys to it, and a
/// fragment that says what is wrong and what the user does about it.
///
/// # Errors
/// The schema is not valid, or hookrun does not run it; a fragment that says what its author does
/// about it.
pub fn violation(schema: &Value, table: &Value) -> Result<Option<(Vec<String>, String)>, String> {
    Measure { root: schema, parts: 0, patterns: 0 }.schema(schema, 0)?;
    let checked = Checked::new(schema).map_err(|Malformed { pointer, problem }| {
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

/// Returns the value as JSON, or its beginning. Takes no longer for a large value.
fn shown(value: &Value) -> String {
    let mut beginning = Beginning(Vec::new());
    // It fails where it stops.
    let _stopped = serde_json::to_writer(&mut beginning, value);
    cut(&String::from_utf8_lossy(&beginning.0), MAX_SHOWN)
}

/// Takes a little more than is shown.
struct Beginning(Vec<u8>);

impl std::io::Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min((MAX_SHOWN + 4).saturating_sub(self.0.len()));
        self.0.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Walks through a schema with its references followed.
struct Measure<'a> {
    root: &'a Value,
    parts: usize,
    patterns: usize,
}

impl<'a> Measure<'a> {
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

    /// A schema, or a list of some. Keywords that are not known may hold schemas too.
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

/// What `#/$defs/name` stands for.
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
    fn what_a_table_violates() {
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
    fn schemas_that_are_not_run() {
        let refused = |schema: Value| violation(&schema, &json!({})).unwrap_err();
        insta::assert_snapshot!(refused(json!({ "allOf": [{ "$ref": "#" }] })), @"has a configuration schema whose references do not end, or grow beyond 10000 parts or 128 levels; its author must write it without recursion");
        insta::assert_snapshot!(refused(json!({ "$ref": "http://example.org/schema.json" })), @"has a configuration schema that refers to `http://example.org/schema.json`; its author must write references as `#/$defs/NAME`, to what is in it");
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "$id": "file:///etc/", "$ref": "#/passwd" } } })), @"has a configuration schema that refers to `$id`; its author must write references as `#/$defs/NAME`, to what is in it");
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } })), @r#"has a `config_schema` that is not a valid JSON schema (/properties/a/pattern: "((a{1000}){1000}){1000}" is not a supported regular expression: it takes more than 1024 KiB when compiled); its author must correct it"#);
        // Look-around is what makes matching exponential.
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
        // As names and values they are as good as any.
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
        /// Definitions that name each other in any way: an answer, soon.
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
