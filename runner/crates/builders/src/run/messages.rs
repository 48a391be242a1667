//! Messages to Nix after the accept.

use std::borrow::Cow;
use std::io::Write;

use crate::protocol::reply::{self, Level};
use crate::slots::sessions::WantedMachine;
use crate::slots::wait::Waiting;

/// Converts a line of Nix's own hook after the accept, when Nix accepts only messages: output of
/// ssh becomes a message.
pub(super) fn relayed(line: &[u8]) -> Cow<'_, [u8]> {
    let text = String::from_utf8_lossy(line);
    if line.starts_with(b"@nix ") || text.trim().is_empty() {
        return Cow::Borrowed(line);
    }
    Cow::Owned(reply::foreign(Level::Info, text.trim_end()))
}

/// The activity that shows that a build waits.
#[derive(Default)]
pub(super) struct WaitActivity {
    /// The names of the machines; nothing is shown if there are none.
    names: Option<String>,
}

impl WaitActivity {
    /// Returns the number of the activity. As in Nix (`logging.cc`, `Activity`), the upper half is
    /// the process id.
    fn id() -> u64 {
        u64::from(std::process::id()) << 32
    }

    /// Shows that the build waits for one of `machines`, unless that is shown already.
    pub(super) fn begin(
        &mut self,
        reply: &mut dyn Write,
        waiting: &Waiting,
        machines: &[WantedMachine],
        others: usize,
    ) {
        let names: Vec<&str> = machines.iter().map(|wanted| wanted.machine.as_str()).collect();
        let names = names.join(" or ");
        if self.names.as_ref() == Some(&names) {
            return;
        }
        self.end(reply);
        let others = match others {
            0 => String::new(),
            1 => ", as does 1 other build".to_owned(),
            count => format!(", as do {count} other builds"),
        };
        let Waiting { name, takes, .. } = waiting;
        let besides = if takes.is_empty() { String::new() } else { format!(" with {takes}") };
        let text = format!("{name} waits for a slot{besides} on {names}{others}");
        write(reply, &reply::activity(Self::id(), &text));
        self.names = Some(names);
    }

    /// Ends the activity.
    pub(super) fn end(&self, reply: &mut dyn Write) {
        if self.names.is_some() {
            write(
                reply,
                format!("@nix {{\"action\":\"stop\",\"id\":{}}}\n", Self::id()).as_bytes(),
            );
        }
    }
}

/// Sends a message to Nix.
pub(super) fn say(reply: &mut dyn Write, level: Level, text: &str) {
    write(reply, &reply::message(level, text));
}

/// Writes to Nix and ignores errors; other code notices if Nix has exited.
pub(super) fn write(reply: &mut dyn Write, bytes: &[u8]) {
    let _ = reply.write_all(bytes).and_then(|()| reply.flush());
}
