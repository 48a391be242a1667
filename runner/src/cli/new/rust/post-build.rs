//! A plugin that announces each build in the log.

use hookrun_sdk::{Failure, Outcome, PostBuild, log, post_build};

#[derive(serde::Deserialize)]
struct Config {
    greeting: String,
}

struct Plugin;

fn announcement(greeting: &str, name: &str) -> String {
    format!("{greeting}: {name} was built")
}

impl PostBuild for Plugin {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        let config: Config = hookrun_sdk::config()?;
        log::info(announcement(&config.greeting, &event.name));
        Ok(Outcome::new(format!("{} outputs", event.outputs.len())))
    }
}

hookrun_sdk::plugin! {
    plugin: Plugin,
    hooks: [PostBuild],
    config_schema: r#"{
        "type": "object",
        "properties": { "greeting": { "type": "string", "examples": ["hello"] } },
        "required": ["greeting"],
        "additionalProperties": false
    }"#,
}

#[test]
fn the_announcement_names_the_build() {
    assert_eq!(announcement("hi", "greet-2.12"), "hi: greet-2.12 was built");
}
