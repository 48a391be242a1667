//! The acts and their functions.

use hookrun_sdk::{Failure, Outcome};
use serde::Deserialize;

use crate::{Here, bombs, floods, giants, handles, outside, reach, words};

/// The configuration.
#[derive(Deserialize)]
#[serde(tag = "act", rename_all = "kebab-case")]
pub(crate) enum Act {
    /// Returns at once, for guests whose attack is elsewhere.
    Nothing,
    // bombs
    /// Never returns.
    Loop,
    /// Sleeps for an hour in one host call.
    Sleep,
    /// Panics.
    Trap,
    /// Recurses without end.
    Recursion,
    /// Allocates without end.
    Memory,
    /// Allocates almost all of the address space at once.
    OneAllocation,
    /// Doubles a string without end.
    Strings,
    // floods
    /// Calls the host without end.
    HostCalls,
    /// Logs many long messages.
    Log,
    /// Logs a million empty fields.
    LogFields,
    /// Prints without a line break.
    Stdout,
    /// Returns 8 MiB.
    Output,
    /// Returns a hundred thousand details.
    Details,
    /// Writes many keys of state.
    State,
    /// Writes a value that is larger than the limit.
    StateValue,
    // giants
    /// Calls the host function `call` with a large argument.
    Giant { call: String },
    // handles
    /// Opens NARs and keeps them.
    Handles,
    /// Opens a NAR and panics.
    TrapHolding,
    /// Drops a handle twice.
    DropTwice,
    /// Uses a handle after dropping it.
    UseDropped,
    /// Uses a handle that it does not have.
    ForgedHandle,
    // reach
    /// Reads below a store path.
    ReadFile { path: String, relative: String },
    /// Lists below a store path.
    ListDirectory { path: String, relative: String },
    /// Asks about a store path.
    PathInfo { path: String },
    /// Asks for the closure of a store path.
    Closure { path: String },
    /// Reads a derivation.
    Derivation { path: String },
    /// Passes a path that is not UTF-8.
    NotUtf8,
    /// Asks for the signature of a store path.
    Sign { key: String, path: String },
    /// Writes an object.
    Put { store: String, key: String },
    /// Uploads a path to a cache, signed by a key.
    Push { store: String, key: String, path: String },
    /// Writes an object with a key of 100,000 bytes.
    PutLongKey { store: String },
    /// Writes an object with a content type that contains another header.
    PutContentType { store: String },
    /// Reads an object of any size.
    Get { store: String, key: String },
    /// Lists objects.
    List { store: String, prefix: String },
    /// Writes state under a key.
    StateKey { key: String },
    /// Writes state under a key of 600 bytes.
    StateLongKey,
    /// Sends mail. The recipient is not in `to`, since that key grants recipients.
    Mail {
        #[serde(default = "transport")]
        transport: String,
        recipient: String,
        #[serde(default = "subject")]
        subject: String,
        #[serde(default)]
        header: Option<(String, String)>,
    },
    /// Sends mails without end.
    MailFlood { recipient: String },
    /// Sends a request.
    Http {
        #[serde(default = "get")]
        method: String,
        url: String,
        #[serde(default)]
        header: Option<(String, String)>,
    },
    // outside
    /// Reads a file through WASI.
    WasiRead { path: String },
    /// Writes a file through WASI.
    WasiWrite { path: String },
    /// Lists a directory through WASI.
    WasiList { path: String },
    /// Connects to an address.
    Tcp { address: String },
    /// Listens on a port.
    TcpListen,
    /// Sends a datagram.
    Udp { address: String },
    /// Resolves a name.
    Lookup { name: String },
    /// Shows its environment.
    Environment,
    /// Shows its arguments.
    Arguments,
    /// Reads standard input.
    Stdin,
    /// Exits with this code.
    Exit { code: i32 },
    /// Asks for 16 MiB of random bytes.
    Random,
    // words
    /// Fails with terminal escapes and line breaks.
    FailEscapes,
    /// Fails with a message of 500,000 bytes.
    FailLong,
    /// Fails, and asks for centuries before the next attempt.
    FailCenturies,
    /// Logs and returns terminal escapes.
    Escapes,
    // builder selection
    /// Chooses this machine, many times.
    Choose { uri: String, times: usize },
}

fn transport() -> String {
    "default".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

fn subject() -> String {
    "hello".to_owned()
}

impl Act {
    pub(crate) fn play(self, here: &Here) -> Result<Outcome, Failure> {
        match self {
            Self::Nothing => Ok(Outcome::new("did nothing")),
            Self::Loop => bombs::endless(),
            Self::Sleep => bombs::sleep(),
            Self::Trap => bombs::trap(),
            Self::Recursion => Ok(Outcome::new(bombs::deeper(1).to_string())),
            Self::Memory => bombs::memory(),
            Self::OneAllocation => bombs::one_allocation(),
            Self::Strings => bombs::strings(),
            Self::HostCalls => floods::host_calls(),
            Self::Log => floods::log(),
            Self::LogFields => floods::log_fields(),
            Self::Stdout => floods::stdout(),
            Self::Output => floods::output(),
            Self::Details => floods::details(),
            Self::State => floods::state(),
            Self::StateValue => floods::state_value(),
            Self::Giant { call } => giants::giant(&call, here),
            Self::Handles => handles::many(here),
            Self::TrapHolding => handles::trap_holding(here),
            Self::DropTwice => handles::drop_twice(here),
            Self::UseDropped => handles::use_dropped(here),
            Self::ForgedHandle => handles::forged(),
            Self::ReadFile { path, relative } => reach::read_file(&here.fill(&path), &relative),
            Self::ListDirectory { path, relative } => {
                reach::list_directory(&here.fill(&path), &relative)
            }
            Self::PathInfo { path } => reach::path_info(&here.fill(&path)),
            Self::Closure { path } => reach::closure(&here.fill(&path)),
            Self::Derivation { path } => reach::derivation(&here.fill(&path)),
            Self::NotUtf8 => reach::not_utf8(),
            Self::Sign { key, path } => reach::sign(&key, &here.fill(&path)),
            Self::Put { store, key } => reach::put(&store, &key),
            Self::Push { store, key, path } => reach::push(&store, key, here.fill(&path)),
            Self::PutLongKey { store } => reach::put(&store, &"k".repeat(100_000)),
            Self::PutContentType { store } => reach::put_content_type(&store),
            Self::Get { store, key } => reach::get(&store, &key),
            Self::List { store, prefix } => reach::list(&store, &prefix),
            Self::StateKey { key } => reach::state_key(&key),
            Self::StateLongKey => reach::state_key(&"k".repeat(600)),
            Self::Mail { transport, recipient, subject, header } => {
                reach::mail(&transport, recipient, subject, header)
            }
            Self::MailFlood { recipient } => floods::mail(&recipient),
            Self::Http { method, url, header } => reach::http(&method, &url, header),
            Self::WasiRead { path } => outside::read(&path),
            Self::WasiWrite { path } => outside::write(&path),
            Self::WasiList { path } => outside::list(&path),
            Self::Tcp { address } => outside::tcp(&address),
            Self::TcpListen => outside::listen(),
            Self::Udp { address } => outside::udp(&address),
            Self::Lookup { name } => outside::lookup(&name),
            Self::Environment => outside::environment(),
            Self::Arguments => outside::arguments(),
            Self::Stdin => outside::stdin(),
            Self::Exit { code } => std::process::exit(code),
            Self::Random => outside::random(),
            Self::FailEscapes => words::fail_escapes(),
            Self::FailLong => words::fail_long(),
            Self::FailCenturies => words::fail_centuries(),
            Self::Escapes => words::escapes(),
            Self::Choose { .. } => Ok(Outcome::new("only builder selection chooses")),
        }
    }
}
