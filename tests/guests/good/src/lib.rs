//! A well-behaved guest: all three hooks in one component, with log, configuration and state.

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};
use hookrun_sdk::log::Level;
use hookrun_sdk::{
    BuilderSelection, Diff, Failure, Outcome, PostBuild, Want, Wants, config, diff, log,
    post_build, state,
};

#[derive(serde::Deserialize)]
struct Config {
    #[serde(default = "greeting")]
    greeting: String,
    /// Fails after writing to the state: `transient` or `permanent`.
    #[serde(default)]
    fail: Option<String>,
}

fn greeting() -> String {
    "hello".to_owned()
}

struct Good;

/// Counts the runs for `name` in the state, and logs it.
fn count(name: &str, host: &str) -> Result<Outcome, Failure> {
    let config: Config = config()?;
    let runs = state::get_json::<u64>(name)?.unwrap_or(0) + 1;
    state::set_json(name, &runs)?;
    log::write(Level::Info, &config.greeting, &[("host", host)]);
    println!("counted {name}");
    match config.fail.as_deref() {
        Some("transient") => Err(Failure::transient("told to fail for a while")
            .retry_after(std::time::Duration::from_secs(7))),
        Some(_) => Err(Failure::permanent("told to fail")),
        None => Ok(Outcome::new(format!("{} {name}", config.greeting)).detail("runs", runs)),
    }
}

impl PostBuild for Good {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        count(&event.name, &event.host)
    }
}

impl Diff for Good {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        Ok(count(&event.name, &event.host)?.detail("differences", event.differences.len()))
    }
}

impl BuilderSelection for Good {
    fn select(
        candidate: Candidate,
        machines: Vec<Machine>,
        _: LocalMachine,
    ) -> Result<Decision, String> {
        log::debug(format!("{} machines for {}", machines.len(), candidate.name));
        Ok(Decision::machines(machines.into_iter().map(|machine| machine.uri), "as offered"))
    }
}

hookrun_sdk::plugin! {
    plugin: Good,
    hooks: [PostBuild, Diff, BuilderSelection],
    wants: Wants { state: Want::Required, ..Wants::NOTHING },
    config_schema: r#"{
        "type": "object",
        "properties": {
            "greeting": { "type": "string", "minLength": 1 },
            "fail": { "enum": ["transient", "permanent"] }
        },
        "additionalProperties": false
    }"#,
}
