//! A plugin's configuration schema: a stranger's data that runs, as a JSON schema, in the host and
//! before any wall.
//!
//! Called when a plugin is read ([`super::load`]). So its cost is bounded first: references must
//! end and must not multiply (a schema of forty definitions, each naming the one before twice, is a
//! billion of billions of checks), they stay inside the schema, and patterns are matched by an
//! engine that takes linear time. Nothing is fetched, ever.

use jsonschema::PatternOptions;
use serde_json::Value;

/// Parts of a schema with all its references followed. A plugin with a hundred keys has less than a
/// thousand.
const MAX_PARTS: usize = 10_000;
/// Levels of a schema, references followed; serde_json reads no deeper JSON either.
const MAX_DEPTH: usize = 128;
/// Bytes of one compiled pattern; a pattern for a store path has some thousands.
const MAX_PATTERN: usize = 1 << 20;

/// The first thing in `table` that the schema does not allow: the path of keys to it, and a
/// fragment.
///
/// # Errors
/// The schema itself is none, or is not one that hookrun runs; a fragment that says what its author
/// does about it.
pub fn violation(schema: &Value, table: &Value) -> Result<Option<(Vec<String>, String)>, String> {
    let mut left = MAX_PARTS;
    measure(schema, schema, 0, &mut left)?;
    let validator = jsonschema::options()
        .with_pattern_options(
            PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN),
        )
        .build(schema)
        .map_err(|error| {
            let message = error.to_string().replace('\n', " ");
            let path = error.instance_path().to_string();
            let place = if path.is_empty() { "as a whole" } else { path.as_str() };
            format!(
                "has a `config_schema` that is not a valid JSON schema ({place}: {message}); its author must correct it"
            )
        })?;
    let violation = validator.iter_errors(table).next().map(|error| {
        let path = error.instance_path().to_string();
        let keys =
            path.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
        (keys, error.to_string().replace('\n', " "))
    });
    Ok(violation)
}

/// Counts the parts of `part`, references followed; fails when there are too many.
fn measure(root: &Value, part: &Value, depth: usize, left: &mut usize) -> Result<(), String> {
    let grows = || {
        format!(
            "has a configuration schema whose references do not end, or grow beyond {MAX_PARTS} parts or {MAX_DEPTH} levels; its \
             author must write it without recursion"
        )
    };
    *left = left.checked_sub(1).filter(|_| depth < MAX_DEPTH).ok_or_else(grows)?;
    match part {
        Value::Array(items) => {
            items.iter().try_for_each(|item| measure(root, item, depth + 1, left))
        }
        Value::Object(keys) => {
            for (key, value) in keys {
                match (key.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        measure(root, referenced(root, target)?, depth + 1, left)?;
                    }
                    // These make references mean something else than their text says.
                    ("$dynamicRef" | "$recursiveRef", _) => return Err(foreign(key)),
                    ("$id" | "id", Value::String(_)) if depth > 0 => return Err(foreign(key)),
                    _ => measure(root, value, depth + 1, left)?,
                }
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
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
mod tests {
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
        insta::assert_snapshot!(message, @r#""x" is not of type "integer""#);

        let schema =
            json!({ "properties": { "to": { "type": "array" } }, "additionalProperties": false });
        let (keys, message) = violation(&schema, &json!({ "too": 1 })).unwrap().unwrap();
        assert_eq!(keys, Vec::<String>::new());
        insta::assert_snapshot!(message, @"Additional properties are not allowed ('too' was unexpected)");
    }

    #[test]
    fn schemas_that_are_not_run() {
        let refused = |schema: Value| violation(&schema, &json!({})).unwrap_err();
        insta::assert_snapshot!(refused(json!({ "allOf": [{ "$ref": "#" }] })), @"has a configuration schema whose references do not end, or grow beyond 10000 parts or 128 levels; its author must write it without recursion");
        insta::assert_snapshot!(refused(json!({ "$ref": "http://example.org/schema.json" })), @"has a configuration schema that refers to `http://example.org/schema.json`; its author must write references as `#/$defs/NAME`, to what is in it");
        insta::assert_snapshot!(refused(json!({ "properties": { "a": { "$id": "file:///etc/", "$ref": "#/passwd" } } })), @"has a configuration schema that refers to `$id`; its author must write references as `#/$defs/NAME`, to what is in it");
        assert!(
            refused(json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } }))
                .contains("is not a valid JSON schema")
        );
        // Look-around is what makes matching exponential.
        assert!(
            refused(json!({ "properties": { "a": { "pattern": "^(?=a)(a+)+$" } } }))
                .contains("is not a valid JSON schema")
        );
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
            let _ = violation(&schema, &json!({}));
        }
    }
}
