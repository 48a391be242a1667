//! A plugin that reports each difference between two builds in the log.

use hookrun_sdk::{Diff, Failure, Outcome, diff, log};

#[derive(serde::Deserialize)]
struct Config {
    greeting: String,
}

struct Plugin;

fn report(greeting: &str, name: &str) -> String {
    format!("{greeting}: {name} is not reproducible")
}

impl Diff for Plugin {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        log::warn(report(&config.greeting, &event.name));
        Ok(Outcome::new(format!("{} differences", event.differences.len())))
    }
}

hookrun_sdk::plugin! {
    plugin: Plugin,
    hooks: [Diff],
    config_schema: r#"{
        "type": "object",
        "properties": { "greeting": { "type": "string", "examples": ["hello"] } },
        "required": ["greeting"],
        "additionalProperties": false
    }"#,
}

#[test]
fn the_report_names_the_build() {
    assert_eq!(report("hi", "greet-2.12"), "hi: greet-2.12 is not reproducible");
}
