//! A guest with a fault that `config.fault` names. Each fault reaches a limit or traps.

use std::hash::{BuildHasher as _, RandomState};

use hookrun_sdk::builder_selection::{Candidate, Decision, LocalMachine, Machine};
use hookrun_sdk::mail::{self, Message};
use hookrun_sdk::object_store::ObjectStore;
use hookrun_sdk::{
    BuilderSelection, Diff, Failure, Outcome, PostBuild, Want, Wants, config, diff, log,
    post_build, state,
};

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    fault: Fault,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// Never returns.
    Loop,
    /// Writes an object with a unique name to the store `marks`, and never returns.
    MarkThenLoop,
    /// Panics.
    Trap,
    /// Exits with `exit(3)`.
    Exit,
    /// Allocates without end.
    Memory,
    /// Recurses without end.
    Stack,
    /// Calls the host without end.
    HostCalls,
    /// Logs long messages.
    Log,
    /// Hands 64 MiB to the host in one call.
    CallBytes,
    /// Returns 8 MiB.
    Output,
    /// Fills its state.
    State,
    /// Uses a capability its metadata does not want.
    Unwanted,
    /// Writes to its state, then traps.
    StateThenTrap,
    /// Uses the first output of the event without a check.
    FirstOutput,
}

struct Faulty;

const MIB: usize = 1 << 20;

#[expect(clippy::panic, reason = "that is the fault")]
fn misbehave() -> Result<Outcome, Failure> {
    let config: Config = config()?;
    match config.fault {
        Fault::Loop => loop {
            std::hint::black_box(0);
        },
        Fault::MarkThenLoop => {
            // A name that no other run has: the keys of a hasher are random.
            let name = RandomState::new().hash_one(0).to_string();
            ObjectStore::named("marks").put(&name, "text/plain", b"begun")?;
            loop {
                std::hint::black_box(0);
            }
        }
        Fault::Trap => panic!("told to trap"),
        Fault::Exit => std::process::exit(3),
        Fault::Memory => {
            let mut held = Vec::new();
            loop {
                held.push(std::hint::black_box(vec![1_u8; MIB]));
            }
        }
        Fault::Stack => Ok(Outcome::new(deeper(1).to_string())),
        Fault::HostCalls => loop {
            log::trace("again");
        },
        Fault::Log => {
            for _ in 0..1000 {
                log::info("x".repeat(10_000));
            }
            Ok(Outcome::new("logged"))
        }
        Fault::CallBytes => {
            state::set("big", &vec![0; 64 * MIB])?;
            Ok(Outcome::new("stored"))
        }
        Fault::Output => Ok(Outcome::new("x".repeat(8 * MIB))),
        Fault::State => {
            for number in 0..100 {
                state::set(&format!("key-{number}"), &vec![0; MIB / 10])?;
            }
            Ok(Outcome::new("stored"))
        }
        Fault::Unwanted => {
            let message = Message { subject: "no".to_owned(), ..Message::default() };
            mail::send("default", &["root@localhost".to_owned()], message)?;
            Ok(Outcome::new("sent"))
        }
        Fault::StateThenTrap => {
            state::set("written", b"yes")?;
            panic!("told to trap")
        }
        // Only `handle` has an event.
        Fault::FirstOutput => Ok(Outcome::new("nothing to use")),
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
fn deeper(level: u64) -> u64 {
    // Nothing on the stack in linear memory, which is smaller than one would think: the engine's
    // stack has to be the first to end.
    std::hint::black_box(deeper(std::hint::black_box(level + 1))) + 1
}

impl PostBuild for Faulty {
    #[expect(clippy::indexing_slicing, reason = "that is the fault")]
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        match config::<Config>()?.fault {
            Fault::FirstOutput => Ok(Outcome::new(event.outputs[0].name.clone())),
            _ => misbehave(),
        }
    }
}

impl Diff for Faulty {
    fn handle(_: diff::Event) -> Result<Outcome, Failure> {
        misbehave()
    }
}

impl BuilderSelection for Faulty {
    fn select(_: Candidate, _: Vec<Machine>, _: LocalMachine) -> Result<Decision, String> {
        misbehave()
            .map(|outcome| Decision::decline(outcome.message))
            .map_err(|failure| failure.message)
    }
}

hookrun_sdk::plugin! {
    plugin: Faulty,
    hooks: [PostBuild, Diff, BuilderSelection],
    wants: Wants { state: Want::Optional, object_store: Want::Optional, ..Wants::NOTHING },
}
