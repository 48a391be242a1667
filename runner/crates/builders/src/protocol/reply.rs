//! The one answer to a candidate, as a type that is consumed by answering.
//!
//! Nix waits without a time limit for a line that starts with `# `, and aborts the whole command if
//! the hook exits before it. While a [`Pending`] exists, an answer is due. Each way to answer
//! consumes it. Dropping it, by an early return or a panic, answers `# decline-permanently`, and
//! Nix continues without a build hook.

use std::io::{self, Write};

use hookrun_nix::terminal::printable;

/// Nix's log levels (`libutil/logging.hh`) that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `lvlError`.
    Error = 0,
    /// `lvlWarn`.
    Warn = 1,
    /// `lvlInfo`: shown by default.
    Info = 3,
    /// `lvlTalkative`: shown with one `-v`.
    Talkative = 4,
    /// `lvlChatty`: shown with two.
    Chatty = 5,
}

/// An answer to Nix that is due.
#[derive(Debug)]
#[must_use = "Nix waits for the answer"]
pub struct Pending<'a, W: Write> {
    /// The stream; taken by the answer.
    reply: Option<&'a mut W>,
}

impl<'a, W: Write> Pending<'a, W> {
    /// Starts a question, whose answer is due from now on.
    pub fn new(reply: &'a mut W) -> Self {
        Self { reply: Some(reply) }
    }

    /// Answers that the machine `name` builds it. Returns the stream for further messages.
    ///
    /// # Errors
    /// Nix has exited.
    pub fn accept(mut self, name: &[u8]) -> io::Result<&'a mut W> {
        let mut answer = b"# accept\n".to_vec();
        answer.extend(name.iter().filter(|byte| **byte != b'\n'));
        answer.push(b'\n');
        let reply = self.reply.take().ok_or(io::ErrorKind::BrokenPipe)?;
        say(reply, &answer)?;
        Ok(reply)
    }

    /// Answers that Nix builds on this machine, now or when a slot is free.
    ///
    /// # Errors
    /// Nix has exited.
    pub fn decline(self) -> io::Result<()> {
        self.answer(b"# decline\n")
    }

    /// Answers that Nix should ask again later.
    ///
    /// # Errors
    /// Nix has exited.
    pub fn postpone(self) -> io::Result<()> {
        self.answer(b"# postpone\n")
    }

    /// Answers that Nix should not ask again in this command.
    ///
    /// # Errors
    /// Nix has exited.
    pub fn decline_permanently(self) -> io::Result<()> {
        self.answer(DECLINE_PERMANENTLY)
    }

    /// Ends without an answer, because Nix ended the conversation without a question.
    pub fn withdraw(mut self) {
        self.reply = None;
    }

    fn answer(mut self, text: &[u8]) -> io::Result<()> {
        self.reply.take().map_or(Ok(()), |reply| say(reply, text))
    }

    /// Writes a message of hookrun for the user at the client.
    pub fn message(&mut self, level: Level, text: &str) {
        if let Some(reply) = &mut self.reply {
            // A message that cannot be delivered changes nothing: the answer will fail as well.
            let _ = say(*reply, &message(level, text));
        }
    }

    /// Relays a line of the stock hook that is not an answer.
    pub fn relay(&mut self, line: &[u8]) {
        if let Some(reply) = self.reply.as_mut().filter(|_| !line.starts_with(b"# ")) {
            let mut line = line.to_vec();
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            let _ = say(*reply, &line);
        }
    }
}

impl<W: Write> Drop for Pending<'_, W> {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let _ = say(reply, DECLINE_PERMANENTLY);
        }
    }
}

const DECLINE_PERMANENTLY: &[u8] = b"# decline-permanently\n";

fn say(reply: &mut impl Write, text: &[u8]) -> io::Result<()> {
    reply.write_all(text)?;
    reply.flush()
}

/// Returns a log message in the form that Nix reads from its build hook (`makeJSONLogger`,
/// `libutil/logging.cc`). It is always one line, and safe to show after Nix has decoded the JSON,
/// because it may contain text of a policy.
pub fn message(level: Level, text: &str) -> Vec<u8> {
    foreign(level, &format!("hookrun: {text}"))
}

/// Returns a log message with text that is not from hookrun.
pub fn foreign(level: Level, text: &str) -> Vec<u8> {
    let json = serde_json::json!({ "action": "msg", "level": level as u8, "msg": printable(text) });
    format!("@nix {json}\n").into_bytes()
}

/// Returns the start of an activity that waits for a build (`actBuildWaiting`, `logging.hh`), in
/// the same form.
pub fn activity(id: u64, text: &str) -> Vec<u8> {
    const BUILD_WAITING: u32 = 111;
    let text = format!("hookrun: {}", printable(text));
    let json = serde_json::json!({
        "action": "start", "id": id, "level": Level::Info as u8, "type": BUILD_WAITING, "text": text, "fields": [],
    });
    format!("@nix {json}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(act: impl FnOnce(Pending<'_, Vec<u8>>)) -> String {
        let mut reply = Vec::new();
        act(Pending::new(&mut reply));
        String::from_utf8(reply).unwrap()
    }

    #[test]
    fn each_way_to_answer_writes_one_answer() {
        assert_eq!(said(|pending| pending.decline().unwrap()), "# decline\n");
        assert_eq!(said(|pending| pending.postpone().unwrap()), "# postpone\n");
        assert_eq!(
            said(|pending| pending.decline_permanently().unwrap()),
            "# decline-permanently\n"
        );
        assert_eq!(said(|pending: Pending<'_, _>| Pending::withdraw(pending)), "");
        assert_eq!(said(|pending| drop(pending)), "# decline-permanently\n");
        let accept = |pending: Pending<'_, Vec<u8>>| {
            pending.accept(b"ssh://m\n# decline").unwrap();
        };
        assert_eq!(said(accept), "# accept\nssh://m# decline\n");
    }

    #[test]
    fn a_panic_answers_the_question() {
        let mut reply = Vec::new();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _pending = Pending::new(&mut reply);
            panic!("defect");
        }));
        assert!(result.is_err());
        assert_eq!(reply, DECLINE_PERMANENTLY);
    }

    #[test]
    fn nothing_else_looks_like_an_answer() {
        let text = said(|mut pending| {
            pending.message(Level::Warn, "two\nlines # accept");
            pending.relay(b"# accept");
            pending.relay(b"plain");
            pending.decline().unwrap();
        });
        insta::assert_snapshot!(text, @r#"
        @nix {"action":"msg","level":1,"msg":"hookrun: two\\nlines # accept"}
        plain
        # decline
        "#);
    }
}
