//! The tables of keys in docs/configuration.md have the keys that are read, and no others.

use std::collections::BTreeSet;
use std::path::Path;

use hookrun_config::{Config, bundled};
use hookrun_host::metadata::describe;
use hookrun_tests::document;
use serde_json::Value;

/// The rows of the first table below `heading`: the cells of each.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = page.lines().skip_while(|line| *line != heading).skip(1);
    let section = section.take_while(|line| !line.starts_with('#'));
    let rows = section.skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let rows: Vec<Vec<String>> = rows
        .map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "docs/configuration.md has no table below `{heading}`");
    rows
}

/// The words in backquotes in the first cell of a row; `.x` after `a.b` is `a.x`.
fn keys(cell: &str) -> Vec<String> {
    let mut table = String::new();
    let words = cell.split('`').skip(1).step_by(2);
    words
        .map(|word| match word.strip_prefix('.') {
            Some(key) => format!("{table}.{key}"),
            None => {
                table = word.rsplit_once('.').map_or_else(String::new, |(table, _)| table.into());
                word.to_owned()
            }
        })
        .collect()
}

fn documented(page: &str, heading: &str) -> BTreeSet<String> {
    table(page, heading).iter().flat_map(|row| keys(&row[0])).collect()
}

/// The keys that a table may have, as the message about an unknown key lists them. `text` ends
/// where a key of this table may be written.
fn known(text: &str) -> BTreeSet<String> {
    let text = text.replace("KEY", "'?' = 1");
    let error = Config::parse(Path::new("hookrun.toml"), &text).unwrap_err().to_string();
    let (_, known) = error.split_once("unknown key `?`; known: ").expect(&error);
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn tables_of_configuration_keys_are_complete() {
    let page = document::read("docs/configuration.md");
    for (heading, text, nested) in [
        ("## `[worker]`", "worker = { KEY }", &[] as &[&str]),
        ("## `[builders]`", "builders = { KEY }", &[]),
        ("## `[plugins.NAME]`", "plugins.a = { source = 'a', KEY }", &["filter", "retry"]),
        ("### `[plugins.NAME.grant]`", "plugins.a = { source = 'a', grant = { KEY } }", &[]),
        (
            "### `[[plugins.NAME.grant.http]]`",
            "plugins.a = { source = 'a', grant.http = [{ url = 'https://h', KEY }] }",
            &[],
        ),
        ("## `[object-stores.NAME]`", "object-stores.a = { KEY }", &["credentials"]),
        ("## `[signing-keys.\"NAME\"]`", "signing-keys.a = { file = 'a', KEY }", &[]),
        ("## `[mail.NAME]`", "mail.a = { KEY }", &[]),
        ("## `[http-credentials.NAME]`", "http-credentials.a = { kind = 'bearer', KEY }", &[]),
    ] {
        let mut keys = known(text);
        for table in nested {
            assert!(keys.remove(*table), "{heading} has no key `{table}`");
            let inner = known(&text.replace("KEY", &format!("{table} = {{ KEY }}")));
            keys.extend(inner.iter().map(|key| format!("{table}.{key}")));
        }
        assert_eq!(documented(&page, heading), keys, "the table below `{heading}`");
    }
}

#[test]
fn tables_of_the_bundled_plugins_follow_their_schemas() {
    let page = document::read("docs/configuration.md");
    for name in bundled::NAMES {
        let component = hookrun_host::bundled::component(name).unwrap();
        let schema = describe(component).unwrap().metadata.config_schema.unwrap();
        let required: Vec<&str> = schema["required"]
            .as_array()
            .map(|keys| keys.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let properties = schema["properties"].as_object().unwrap();
        let heading = format!("### `{name}`");
        let expected: BTreeSet<String> = properties.keys().cloned().collect();
        assert_eq!(documented(&page, &heading), expected, "the table below `{heading}`");
        for row in table(&page, &heading) {
            let [key] = keys(&row[0]).try_into().expect("one key in each row");
            let shown = &row[1];
            if required.contains(&key.as_str()) {
                assert_eq!(shown, "required", "`{key}` of {name}");
            } else if let Some(default) = properties[&key].get("default") {
                let default = default.to_string().replace(',', ", ");
                assert_eq!(*shown, format!("`{default}`"), "`{key}` of {name}");
            }
        }
    }
}
