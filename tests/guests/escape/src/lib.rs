//! The guest of the escape drill. A host with the feature `escape-drill` makes the attempts of the
//! configuration in its sandbox, and the guest logs the result of each.

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};
use hookrun_sdk::{
    BuilderSelection, Failure, Outcome, PostBuild, Want, Wants, config, log, post_build,
};

#[allow(clippy::all, clippy::pedantic, unsafe_code, reason = "generated code")]
mod drill {
    wit_bindgen::generate!({
        inline: "
            package hookrun:drill@0.1.0;

            interface attempts {
                run: func(what: string) -> string;
            }

            world drill {
                import attempts;
            }
        ",
    });
}

#[derive(serde::Deserialize)]
struct Config {
    attempts: Vec<String>,
}

struct Escape;

impl PostBuild for Escape {
    fn handle(_: post_build::Event) -> Result<Outcome, Failure> {
        let Config { attempts } = config()?;
        for what in &attempts {
            log::info(format!("{what} => {}", drill::hookrun::drill::attempts::run(what)));
        }
        Ok(Outcome::new(format!("{} attempts", attempts.len())))
    }
}

impl BuilderSelection for Escape {
    /// The reason of a failed policy is in the output of the hook.
    fn select(_: Candidate, _: Vec<Machine>, _: LocalMachine) -> Result<Decision, String> {
        let Config { attempts } = config().map_err(|error| error.to_string())?;
        let results = attempts
            .iter()
            .map(|what| format!("{what} => {}", drill::hookrun::drill::attempts::run(what)));
        Err(results.collect::<Vec<_>>().join(" | "))
    }
}

hookrun_sdk::plugin! {
    plugin: Escape,
    hooks: [PostBuild, BuilderSelection],
    wants: Wants { state: Want::Optional, object_store: Want::Optional, ..Wants::NOTHING },
}
