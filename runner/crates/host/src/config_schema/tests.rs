//! Tests of each keyword with values that it allows and values that it refuses.

use serde_json::{Value, json};

use super::{MAX_MESSAGE, violation};

/// Describes the first difference: the keys that lead to it, and the message.
fn difference(schema: &Value, value: &Value) -> String {
    match violation(schema, value).unwrap() {
        Some((keys, message)) => format!("{}: {message}", keys.join(".")),
        None => "allowed".to_owned(),
    }
}

/// Returns schemas with lists of values that they allow and refuse.
fn keywords() -> Vec<[Value; 3]> {
    vec![
        [json!(true), json!([1, {}]), json!([])],
        [json!(false), json!([]), json!([1])],
        [json!({ "type": "integer" }), json!([1, 1.0, -3]), json!([1.5, "1", true])],
        [json!({ "type": "number" }), json!([1, 1.5]), json!(["1", null])],
        [json!({ "type": ["string", "null"] }), json!(["", null]), json!([0, [], {}])],
        [json!({ "type": "object" }), json!([{}]), json!([[]])],
        [json!({ "enum": ["a", 1, [2]] }), json!(["a", 1.0, [2.0]]), json!(["b", [2, 2]])],
        [json!({ "const": { "a": 1 } }), json!([{ "a": 1.0 }]), json!([{ "a": 2 }, {}])],
        [json!({ "const": false }), json!([false]), json!([0])],
        [json!({ "minimum": 1.1 }), json!([1.1, 2, "x"]), json!([1, -5])],
        [json!({ "minimum": u64::MAX }), json!([u64::MAX]), json!([u64::MAX - 1])],
        [json!({ "maximum": 3 }), json!([3, 3.0]), json!([3.5, u64::MAX])],
        [json!({ "exclusiveMinimum": 0 }), json!([1, 0.1]), json!([0, -1])],
        [json!({ "exclusiveMaximum": 3 }), json!([2.2]), json!([3.0, 4])],
        [json!({ "multipleOf": 2 }), json!([10, -4, 0, "x"]), json!([7])],
        [json!({ "multipleOf": 0.01 }), json!([4.02, 3, 0.07]), json!([4.025])],
        [json!({ "minLength": 2 }), json!(["ab", 1]), json!(["", "\u{1f4a9}"])],
        [json!({ "maxLength": 2 }), json!(["\u{1f4a9}\u{1f4a9}"]), json!(["abc"])],
        [json!({ "maxLength": 2.0 }), json!(["ab"]), json!(["abc"])],
        [json!({ "pattern": "a+" }), json!(["xaax", 1]), json!(["", "b"])],
        [json!({ "pattern": r"^\d$" }), json!(["1"]), json!(["\u{09ea}", "12"])],
        [json!({ "pattern": r"^\p{L}$" }), json!(["\u{e9}"]), json!(["1"])],
        [json!({ "pattern": "^[[&&a]$" }), json!(["[", "&"]), json!(["b"])],
        [json!({ "minItems": 1 }), json!([[1], ""]), json!([[]])],
        [json!({ "maxItems": 1 }), json!([[1], []]), json!([[1, 2]])],
        [
            json!({ "uniqueItems": true }),
            json!([[1, 2], ["1", 1], [[1], [2]], [false, 0], []]),
            json!([[1, 1.0], [{ "a": 1 }, { "a": 1 }]]),
        ],
        [json!({ "uniqueItems": false }), json!([[1, 1]]), json!([])],
        [json!({ "items": { "type": "integer" } }), json!([[1], [], "x"]), json!([[1, "x"]])],
        [
            json!({ "prefixItems": [{ "type": "integer" }], "items": { "type": "string" } }),
            json!([[1, "x"], [], [1]]),
            json!([["x"], [1, 1]]),
        ],
        [json!({ "prefixItems": [{}], "items": false }), json!([[1]]), json!([[1, 2]])],
        [json!({ "prefixItems": [{}], "additionalItems": false }), json!([[1, 2]]), json!([])],
        [
            json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "items": [{ "type": "integer" }], "additionalItems": { "type": "string" },
            }),
            json!([[1, "x"], []]),
            json!([["x"], [1, 1]]),
        ],
        [json!({ "contains": { "minimum": 5 } }), json!([[3, 5], [6, 7]]), json!([[3], []])],
        [
            json!({ "contains": { "const": 1 }, "minContains": 2, "maxContains": 3 }),
            json!([[1, 1], [1, 1, 1]]),
            json!([[1, 2], [1, 1, 1, 1]]),
        ],
        [json!({ "contains": { "const": 1 }, "minContains": 0 }), json!([[]]), json!([])],
        [json!({ "required": ["a"] }), json!([{ "a": null }, []]), json!([{}])],
        [json!({ "minProperties": 1 }), json!([{ "a": 1 }]), json!([{}])],
        [json!({ "maxProperties": 1 }), json!([{ "a": 1 }]), json!([{ "a": 1, "b": 1 }])],
        [
            json!({
                "properties": { "a": { "type": "integer" } },
                "patternProperties": { "^x-": { "type": "string" } },
                "additionalProperties": { "type": "boolean" },
            }),
            json!([{ "a": 1, "x-1": "", "b": true }, {}]),
            json!([{ "a": "" }, { "x-1": 1 }, { "b": 1 }]),
        ],
        [
            json!({ "patternProperties": { "^x": true }, "additionalProperties": false }),
            json!([{ "x": 1 }]),
            json!([{ "y": 1 }]),
        ],
        [
            json!({ "propertyNames": { "maxLength": 3 } }),
            json!([{ "foo": 1 }, "four"]),
            json!([{ "four": 1 }]),
        ],
        [
            json!({ "dependentRequired": { "b": ["a"] } }),
            json!([{}, { "a": 1 }, { "a": 1, "b": 1 }]),
            json!([{ "b": 1 }]),
        ],
        [
            json!({ "dependentSchemas": { "b": { "maxProperties": 1 } } }),
            json!([{ "b": 1 }, { "a": 1, "c": 1 }]),
            json!([{ "a": 1, "b": 1 }]),
        ],
        [
            json!({ "dependencies": { "b": ["a"], "c": { "maxProperties": 1 } } }),
            json!([{ "a": 1, "b": 1 }, { "c": 1 }]),
            json!([{ "b": 1 }, { "c": 1, "d": 1 }]),
        ],
        [json!({ "allOf": [{ "minimum": 1 }, { "maximum": 3 }] }), json!([1, 3]), json!([0, 4])],
        [
            json!({ "anyOf": [{ "type": "integer" }, { "minimum": 2 }] }),
            json!([1, 2.5, 3]),
            json!([1.5]),
        ],
        [
            json!({ "oneOf": [{ "type": "integer" }, { "minimum": 2 }] }),
            json!([1, 2.5]),
            json!([3, 1.5]),
        ],
        [json!({ "not": { "type": "integer" } }), json!(["a"]), json!([1])],
        [
            json!({ "if": { "minimum": 10 }, "then": { "multipleOf": 2 }, "else": { "const": 1 } }),
            json!([12, 1]),
            json!([11, 2]),
        ],
        [json!({ "then": false, "else": false }), json!([1]), json!([])],
        [
            json!({
                "$ref": "#/definitions/a~1b", "maximum": 5,
                "definitions": { "a/b": { "minimum": 1 } },
            }),
            json!([1, 5]),
            json!([0, 6]),
        ],
        // These keywords are annotations.
        [
            json!({ "format": "email", "contentMediaType": "application/json", "title": "t" }),
            json!(["no address", "{"]),
            json!([]),
        ],
        [json!({ "x-unknown": { "type": 7 } }), json!([1]), json!([])],
    ]
}

#[test]
fn each_keyword_allows_and_refuses_values_as_the_standard_defines() {
    let mut messages = String::new();
    for [schema, good, bad] in keywords() {
        for value in good.as_array().unwrap() {
            assert_eq!(violation(&schema, value), Ok(None), "{schema} allows {value}");
        }
        for value in bad.as_array().unwrap() {
            let message = difference(&schema, value);
            assert_ne!(message, "allowed", "{schema} refuses {value}");
            messages.extend([schema.to_string(), "\n  ".to_owned(), message, "\n".to_owned()]);
        }
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn a_message_lists_the_allowed_values() {
    let schema = json!({
        "required": ["bucket"],
        "additionalProperties": false,
        "properties": {
            "bucket": {},
            "key": {
                "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
            },
            "level": { "enum": ["low", "high"] },
        },
    });
    let tables = [
        json!({}),
        json!({ "buket": 1 }),
        json!({ "bucket": 1, "level": "medium" }),
        json!({ "bucket": 1, "key": 5 }),
        json!({ "bucket": 1, "key": ["a", 5] }),
    ];
    let lines: Vec<String> = tables.iter().map(|table| difference(&schema, table)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    : the required key "bucket" is missing; add it (known keys: bucket, key, level)
    buket: unknown key; change or remove it (known keys: bucket, key, level)
    level: "medium" is not one of "low", "high"; change it
    key: 5 is not a string, and 5 is not an array; change it
    key.1: 5 is not a string; change it
    "#);
}

#[test]
fn a_malformed_schema_is_refused_with_the_pointer_to_the_fault() {
    let refused = |schema: Value| match violation(&schema, &json!({})) {
        Err(refused) => refused
            .trim_start_matches("has a `config_schema` that is not a valid JSON schema ")
            .trim_end_matches("; its author must correct it")
            .to_owned(),
        Ok(allowed) => panic!("{schema}: {allowed:?}"),
    };
    let schemas = [
        json!(7),
        json!({ "type": "root" }),
        json!({ "type": [] }),
        json!({ "properties": [] }),
        json!({ "properties": { "a/b": { "minLength": -1 } } }),
        json!({ "$defs": { "unused": { "required": "a" } } }),
        json!({ "required": ["a", "a"] }),
        json!({ "anyOf": [] }),
        json!({ "allOf": [true, 1] }),
        json!({ "items": [{}] }),
        json!({ "multipleOf": 0 }),
        json!({ "minimum": "1" }),
        json!({ "maxItems": 1.5 }),
        json!({ "uniqueItems": 1 }),
        json!({ "enum": "a" }),
        json!({ "title": 1 }),
        json!({ "pattern": "(" }),
        json!({ "pattern": 1 }),
        json!({ "pattern": r"(a)\1" }),
        json!({ "patternProperties": { "*": {} } }),
        json!({ "dependentRequired": { "a": [1] } }),
        json!({ "$ref": 1 }),
        json!({ "x": { "type": 7 }, "$ref": "#/x" }),
        json!({ "$schema": "http://json-schema.org/draft-04/schema#" }),
    ];
    let lines: Vec<String> = schemas.into_iter().map(refused).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// If a level compared its alternatives twice, forty levels would never finish.
#[test]
fn each_alternative_is_compared_once() {
    for keyword in ["anyOf", "oneOf", "allOf", "not", "if", "contains"] {
        let schema = (0..40).fold(json!({ "type": "string" }), |inner, _| match keyword {
            "anyOf" | "oneOf" => json!({ keyword: [false, inner] }),
            "allOf" => json!({ keyword: [true, inner] }),
            "if" => json!({ "if": inner, "else": false }),
            _ => json!({ keyword: inner }),
        });
        for table in [json!({}), json!([[[[]]]])] {
            assert!(violation(&schema, &table).is_ok(), "{keyword}");
        }
    }
}

#[test]
fn a_message_is_short() {
    let long = "x".repeat(MAX_MESSAGE);
    for schema in [
        json!({ "const": long }),
        json!({ "enum": vec![long.clone(); 100] }),
        json!({ "pattern": format!("^y{long}") }),
        json!({ "required": [long] }),
        json!({ "propertyNames": false }),
        json!({ "anyOf": vec![json!({ "const": long }); 100] }),
    ] {
        for table in [json!({}), json!(long), json!({ "a": [long] })] {
            let Some((_, message)) = violation(&schema, &table).unwrap() else { continue };
            assert!(message.len() <= 2 * MAX_MESSAGE, "{} {message}", message.len());
        }
    }
}
