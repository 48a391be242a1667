//! What happens when this process is asked to end (SIGTERM, which Nix sends from 2.35 on, half a
//! second before SIGKILL; SIGINT, SIGHUP): Nix gets the answer that it is owed, everything that was
//! started ends, a build that was taken is closed in the record, and nothing else happens any more:
//! no machine is blamed, no other one is tried.
//!
//! [`watch`] is called once by the hook's process ([`super::hook`]); [`Replies`] is how the session
//! speaks to Nix, so that it is known at any moment whether an answer is owed. It never waits for
//! Nix, which may not read any more.

use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::history::{Record, now_ms};
use crate::run::descendants::end_descendants;
use hookrun_nix::process;

/// What is said to a Nix that is owed an answer: it goes on without us.
const LAST_ANSWER: &[u8] = b"# decline-permanently\n";
/// How an answer begins.
const ANSWER: &[u8] = b"# ";
/// The answer after which there are no further ones from this process.
const TAKEN: &[u8] = b"# accept\n";
/// How long to wait for a Nix that does not read: it takes what is written into its pipe at once,
/// or not at all.
const PATIENCE: Duration = Duration::from_millis(100);

static ANSWERS: Answers = Answers { stage: Mutex::new(Stage::Owed), changed: Condvar::new() };
/// The build that was taken: where its record is, and which it is.
static BUILD: Mutex<Option<(PathBuf, i64)>> = Mutex::new(None);

/// Where the conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nix is owed an answer, or may be: it may just be writing a question.
    Owed,
    /// It is being given.
    BeingGiven,
    /// There is no further one.
    LastGiven,
    /// The process was asked to end.
    Ending,
}

/// Who answers: the session, or what ends it.
#[derive(Debug)]
struct Answers {
    stage: Mutex<Stage>,
    changed: Condvar,
}

impl Answers {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is about to say this. `None`: it must not say anything any more. `Some(true)`:
    /// it is an answer.
    fn begin(&self, words: &[u8]) -> Option<bool> {
        let mut stage = self.stage();
        match *stage {
            Stage::Ending => None,
            Stage::Owed if words.starts_with(ANSWER) => {
                *stage = Stage::BeingGiven;
                Some(true)
            }
            Stage::Owed | Stage::BeingGiven | Stage::LastGiven => Some(false),
        }
    }

    /// The answer that was begun is given.
    fn given(&self, words: &[u8]) {
        let mut stage = self.stage();
        if *stage == Stage::BeingGiven {
            let last = words.starts_with(TAKEN) || words == LAST_ANSWER;
            *stage = if last { Stage::LastGiven } else { Stage::Owed };
        }
        self.changed.notify_all();
    }

    /// From here on the session says nothing. Is Nix owed an answer? One that is being given is
    /// waited for, at most `patience`.
    fn end(&self, patience: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.stage(), patience, |stage| *stage == Stage::BeingGiven);
        let (mut stage, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *stage, Stage::Ending) == Stage::Owed
    }

    fn is_ending(&self) -> bool {
        *self.stage() == Stage::Ending
    }
}

/// Standard error, as the stream of replies to Nix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replies;

impl Write for Replies {
    fn write(&mut self, words: &[u8]) -> io::Result<usize> {
        let Some(is_answer) = ANSWERS.begin(words) else { stand_still() };
        // An answer is shorter than PIPE_BUF (but for a machine's name of more than 4 KiB), so it
        // is written whole or not at all (pipe(7)).
        let written = io::stderr().write(words);
        if is_answer {
            ANSWERS.given(words);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// From here on a signal that asks this process to end does what is said [above](self). To be
/// called before any thread is started.
pub(crate) fn watch() {
    process::when_told_to_end(end);
}

/// A build was taken: closed if the process is asked to end.
pub(crate) fn taken(builders: &Path, id: i64) {
    *build() = Some((builders.to_owned(), id));
}

/// It has its end in the record.
pub(crate) fn closed() {
    *build() = None;
}

/// Goes on, unless the process was asked to end: what its children say from then on is not their
/// own doing.
pub(crate) fn stand_still_if_ending() {
    if ANSWERS.is_ending() {
        stand_still();
    }
}

/// The process ends within moments.
fn stand_still() -> ! {
    loop {
        std::thread::park();
    }
}

fn build() -> MutexGuard<'static, Option<(PathBuf, i64)>> {
    BUILD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On the thread that waits for signals.
fn end() {
    if ANSWERS.end(PATIENCE) && is_writable() {
        // Not through `io::stderr`, whose lock the session may hold.
        let _ = rustix::io::write(rustix::stdio::stderr(), LAST_ANSWER);
    }
    end_descendants(std::process::id());
    if let Some((builders, id)) = build().take() {
        // It is memory, not a promise: what cannot be written is forgotten.
        let _ = Record::open(&builders)
            .and_then(|record| record.abandon(id, "the build hook was asked to end", now_ms()));
    }
    // What the session may have started in the moment before it stood still.
    end_descendants(std::process::id());
}

/// Does the pipe to Nix take a line without waiting?
fn is_writable() -> bool {
    let stderr = io::stderr();
    let stderr = stderr.as_fd();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let patience = Timespec::try_from(PATIENCE).ok();
    poll(&mut fds, patience.as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers { stage: Mutex::new(Stage::Owed), changed: Condvar::new() }
    }

    fn say(answers: &Answers, words: &[u8]) -> Option<bool> {
        let begun = answers.begin(words);
        if begun == Some(true) {
            answers.given(words);
        }
        begun
    }

    #[test]
    fn an_answer_is_owed_until_the_last_is_given() {
        for (said, owed) in [
            (&[][..], true),
            (&[&b"@nix {}\n"[..]][..], true),
            (&[b"# decline\n"], true),
            (&[b"# decline\n", b"# postpone\n"], true),
            (&[b"# decline\n", b"# accept\nssh://m\n"], false),
            (&[b"# accept\nssh://m\n", b"# of a relayed line\n"], false),
            (&[b"# decline-permanently\n"], false),
        ] {
            let answers = answers();
            for words in said {
                assert!(say(&answers, words).is_some());
            }
            assert!(!answers.is_ending());
            assert_eq!(answers.end(Duration::ZERO), owed, "{said:?}");
            assert!(answers.is_ending());
            assert_eq!(
                (say(&answers, b"# decline\n"), say(&answers, b"x\n")),
                (None, None),
                "nothing more is said"
            );
        }
    }

    #[test]
    fn an_answer_that_is_being_given_is_waited_for() {
        let answers = answers();
        assert_eq!(answers.begin(b"# decline\n"), Some(true));
        assert!(!answers.end(Duration::ZERO), "Nix does not read");

        let answers = self::answers();
        assert_eq!(answers.begin(b"# accept\nssh://m\n"), Some(true));
        std::thread::scope(|scope| {
            let end = scope.spawn(|| answers.end(Duration::from_mins(1)));
            answers.given(b"# accept\nssh://m\n");
            assert!(!end.join().unwrap());
        });
    }
}
