//! Texts with placeholders: `{name}` is replaced by a value, and `{{` and `}}` are braces.

/// Replaces the placeholders of `template`. `value` returns the value of a placeholder, or nothing
/// if it is not known.
///
/// # Errors
/// A placeholder is not known, or a brace has no counterpart. The message names it and the fix.
pub fn render(
    template: &str,
    known: &[&str],
    value: impl Fn(&str) -> String,
) -> Result<String, String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        text.push_str(before);
        if let Some(after) = brace.strip_prefix("{{") {
            text.push('{');
            rest = after;
        } else if let Some(after) = brace.strip_prefix("}}") {
            text.push('}');
            rest = after;
        } else {
            let inside = brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((name, after)) = inside else {
                return Err(
                    "a brace has no counterpart; write `{{` or `}}` for a brace in the text".into(),
                );
            };
            if !known.contains(&name) {
                let known = known.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>();
                return Err(format!(
                    "unknown placeholder `{{{name}}}`; known: {}; write `{{{{` for a brace in the text",
                    known.join(", ")
                ));
            }
            text.push_str(&value(name));
            rest = after;
        }
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, String> {
        render(template, &["name", "host"], |name| format!("<{name}>"))
    }

    #[test]
    fn placeholders_are_replaced_and_doubled_braces_stay() {
        assert_eq!(rendered("a {name}{host} b").unwrap(), "a <name><host> b");
        assert_eq!(rendered("{{name}} }}{{ ü").unwrap(), "{name} }{ ü");
        assert_eq!(rendered("").unwrap(), "");
    }

    #[test]
    fn unknown_placeholders_and_single_braces_are_errors() {
        insta::assert_snapshot!(rendered("{nam}").unwrap_err(), @"unknown placeholder `{nam}`; known: {name}, {host}; write `{{` for a brace in the text");
        for template in ["{name", "a } b", "{"] {
            let error = rendered(template).unwrap_err();
            assert!(error.starts_with("a brace has no counterpart"), "{error}");
        }
    }
}
