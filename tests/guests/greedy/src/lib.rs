//! A guest that uses too much of one thing, through capabilities or WASI. `config.want` names it,
//! and `config.times` is the number. If the host refuses, the run fails with the message of the
//! host.

mod wasi;

use hookrun_sdk::mail::{self, Message};
use hookrun_sdk::object_store::{Compression, ObjectStore};
use hookrun_sdk::{
    Diff, Failure, Outcome, PostBuild, Scope, Want, Wants, config, diff, log, nix_store,
    post_build, state,
};

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    want: Wish,
    #[serde(default = "many")]
    times: usize,
}

/// More than any default limit of a number.
fn many() -> usize {
    200_000
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Wish {
    /// Sleeps for a day.
    Sleep,
    /// Sleeps for a day through `std`.
    Nap,
    /// Reads the clock.
    Clock,
    /// Asks for so many random bytes in one call.
    Random,
    /// Holds so many timers.
    Timers,
    /// Polls the same timer so many times in one call.
    Poll,
    /// Holds so many open NARs.
    Nars,
    /// Asks for so many results in one call.
    Exists,
    /// Asks for the same path so many times in one call.
    Infos,
    /// Writes so many keys of state.
    StateKeys,
    /// Writes a key of so many bytes.
    StateKey,
    /// Sends so many mails.
    Mails,
    /// Sends a mail of so many bytes.
    MailBytes,
    /// Prints so many lines.
    Print,
    /// Writes so many log messages.
    Log,
    /// Makes so many calls that are refused.
    Denied,
    /// Uploads a NAR to an object store.
    Upload,
    /// Uses all of WASI except clocks and random numbers.
    LookAround,
    /// Reads the clocks and some random numbers.
    LookUp,
    /// Uses each capability once.
    UseAll,
}

struct Greedy;

const TRANSPORT: &str = "default";
const STORE: &str = "cache";
const KEY: &str = "cache.example.org-1";

fn wish(output: &str) -> Result<Outcome, Failure> {
    let Config { want, times } = config()?;
    let recipients = ["root@localhost".to_owned()];
    match want {
        Wish::Sleep => wasi::sleep_for_a_day(),
        Wish::Nap => std::thread::sleep(std::time::Duration::from_hours(24)),
        Wish::Clock => return Ok(Outcome::new(wasi::clock(times))),
        Wish::Random => {
            return Ok(Outcome::new(format!("{} random bytes", wasi::random(times as u64))));
        }
        Wish::Timers => wasi::timers(times),
        Wish::Poll => wasi::poll(times),
        Wish::Nars => {
            let _open =
                (0..times).map(|_| nix_store::open_nar(output)).collect::<Result<Vec<_>, _>>()?;
        }
        Wish::Exists => drop(ObjectStore::named(STORE).exists(&vec![String::from("a"); times])?),
        Wish::Infos => drop(nix_store::path_infos(&vec![output.to_owned(); times])?),
        Wish::StateKeys => {
            for number in 0..times {
                state::set(&number.to_string(), b"")?;
            }
        }
        Wish::StateKey => state::set(&"k".repeat(times), b"")?,
        Wish::Mails => {
            for _ in 0..times {
                mail::send(
                    TRANSPORT,
                    &recipients,
                    Message { subject: "again".to_owned(), ..Message::default() },
                )?;
            }
        }
        Wish::MailBytes => {
            let message = Message {
                subject: "long".to_owned(),
                text: "x".repeat(times),
                ..Message::default()
            };
            mail::send(TRANSPORT, &recipients, message)?;
        }
        Wish::Print => {
            for _ in 0..times {
                println!("{}", "x".repeat(1000));
            }
        }
        Wish::Log => {
            for _ in 0..times {
                log::info("x");
            }
        }
        Wish::Denied => {
            let refused = (0..times).filter(|_| state::get("a").is_err()).count();
            return Ok(Outcome::new(format!("{refused} refusals")));
        }
        Wish::Upload => {
            let nar = nix_store::open_nar(output)?;
            let stored =
                ObjectStore::named(STORE).put_nar("nar/x.nar", Compression::None, None, &nar)?;
            return Ok(Outcome::new(format!("stored {} bytes", stored.file_size)));
        }
        Wish::LookAround => return Ok(Outcome::new(wasi::look_around())),
        Wish::LookUp => return Ok(Outcome::new(wasi::look_up())),
        Wish::UseAll => return Ok(Outcome::new(use_all(output))),
    }
    Ok(Outcome::new("got it"))
}

/// Returns `capability: ok` or `capability: KIND OF ERROR` for each.
fn use_all(output: &str) -> String {
    let store = ObjectStore::named(STORE);
    let message = Message { subject: "hello".to_owned(), ..Message::default() };
    let word = |kind: Result<(), hookrun_sdk::Error>| match kind {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?}: {}", error.kind, error.message),
    };
    [
        ("state", word(state::set("a", b"b"))),
        ("nix-store", word(nix_store::path_infos(&[output.to_owned()]).map(drop))),
        ("object-store", word(store.put("a", "text/plain", b"b"))),
        ("signing", word(hookrun_sdk::signing::sign_path(KEY, output).map(drop))),
        ("mail", word(mail::send(TRANSPORT, &["root@localhost".to_owned()], message).map(drop))),
    ]
    .map(|(name, word)| format!("{name}: {word}"))
    .join("\n")
}

impl PostBuild for Greedy {
    fn handle(event: post_build::Event) -> Result<Outcome, Failure> {
        wish(event.outputs.first().map_or("", |output| &output.path))
    }
}

impl Diff for Greedy {
    fn handle(event: diff::Event) -> Result<Outcome, Failure> {
        wish(&event.current_path)
    }
}

hookrun_sdk::plugin! {
    plugin: Greedy,
    hooks: [PostBuild, Diff],
    wants: Wants {
        nix_store: Scope::Outputs,
        object_store: Want::Optional,
        signing: Want::Optional,
        mail: Want::Optional,
        state: Want::Optional,
        ..Wants::NOTHING
    },
}
