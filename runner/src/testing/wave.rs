//! Values in the WebAssembly Value Encoding (WAVE), which scenarios use for events:
//! `{drv-path: "/nix/store/...", outputs: [{name: "out", path: "/nix/store/..."}]}`.

use serde_json::{Map, Number, Value};
use wasm_wave::ast::{Node, NodeType};
use wasm_wave::untyped::UntypedValue;

/// Returns a WAVE value as JSON: a record is an object, `none` is null, `some(x)` is `x`.
///
/// # Errors
/// The text is not WAVE, or has a value that an event cannot have.
pub(super) fn json(text: &str) -> Result<Value, String> {
    let parsed = UntypedValue::parse(text).map_err(|error| {
        format!("is not a WAVE value ({error}); write for example `{{name: \"x\"}}`")
    })?;
    value(parsed.node(), text)
        .map_err(|error| format!("is not a WAVE value that an event can have ({error})"))
}

fn value(node: &Node, text: &str) -> Result<Value, String> {
    let failed = |error: wasm_wave::parser::ParserError| error.to_string();
    Ok(match node.ty() {
        NodeType::BoolTrue | NodeType::BoolFalse => Value::Bool(node.as_bool().map_err(failed)?),
        NodeType::Number => number(text.get(node.span()).unwrap_or_default())?,
        NodeType::Char => Value::String(node.as_char(text).map_err(failed)?.to_string()),
        NodeType::String | NodeType::MultilineString => {
            Value::String(node.as_str(text).map_err(failed)?.into_owned())
        }
        NodeType::Tuple => list(node.as_tuple().map_err(failed)?, text)?,
        NodeType::List => list(node.as_list().map_err(failed)?, text)?,
        NodeType::Record => {
            let fields = node.as_record(text).map_err(failed)?;
            let fields = fields.map(|(name, node)| Ok((name.to_owned(), value(node, text)?)));
            Value::Object(fields.collect::<Result<Map<_, _>, String>>()?)
        }
        NodeType::Label => Value::String(node.as_enum(text).map_err(failed)?.to_owned()),
        NodeType::OptionNone => Value::Null,
        NodeType::OptionSome => match node.as_option().map_err(failed)? {
            Some(node) => value(node, text)?,
            None => Value::Null,
        },
        NodeType::VariantWithPayload
        | NodeType::ResultOk
        | NodeType::ResultErr
        | NodeType::Flags => return Err(format!("{:?} in an event", node.ty())),
    })
}

fn list<'a>(nodes: impl Iterator<Item = &'a Node>, text: &str) -> Result<Value, String> {
    nodes.map(|node| value(node, text)).collect::<Result<_, _>>().map(Value::Array)
}

fn number(text: &str) -> Result<Value, String> {
    if let Ok(whole) = text.parse::<u64>() {
        return Ok(whole.into());
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(whole.into());
    }
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map(Value::Number).ok_or_else(|| format!("the number {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wave_values_become_json() {
        let text = r#"{drv-path: "/nix/store/a.drv", outputs: [{name: "out", path: "b\n"}], user: some("ann"), nix: none, n: 3, f: 1.5, ok: true}"#;
        let expected = serde_json::json!({
            "drv-path": "/nix/store/a.drv",
            "outputs": [{ "name": "out", "path": "b\n" }],
            "user": "ann",
            "nix": null,
            "n": 3,
            "f": 1.5,
            "ok": true,
        });
        assert_eq!(json(text).unwrap(), expected);
        assert!(json("{a: }").unwrap_err().starts_with("is not a WAVE value"));
        assert!(json("ok(1)").unwrap_err().contains("ResultOk"));
    }
}
