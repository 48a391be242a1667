//! Ends this process when it gets SIGTERM (which Nix sends since 2.35, half a second before
//! SIGKILL), SIGINT or SIGHUP. If an answer to Nix is due, it is given. All child processes end,
//! and an accepted build is closed in the database. No failure of a machine is recorded, and no
//! other machine is tried.
//!
//! [`watch`] is called once by the hook's process ([`crate::hook`]). The session writes to Nix
//! through [`Replies`], so that it is always known whether an answer is due. It never waits for
//! Nix, which may not read any longer.

use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::history::{Record, now_ms};
use crate::run::descendants::end_descendants;

/// The answer that is given if one is due. Nix continues without the hook.
const LAST_ANSWER: &[u8] = b"# decline-permanently\n";
/// The prefix of an answer.
const ANSWER: &[u8] = b"# ";
/// The answer after which this process gives no further one.
const TAKEN: &[u8] = b"# accept\n";
/// The time to wait for a Nix that does not read. Normally its pipe accepts a write immediately.
const PATIENCE: Duration = Duration::from_millis(100);

static ANSWERS: Answers = Answers { stage: Mutex::new(Stage::Owed), changed: Condvar::new() };
/// The accepted build: the directory of the database, and its number in it.
static BUILD: Mutex<Option<(PathBuf, i64)>> = Mutex::new(None);

/// The stage of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// An answer is due, or may be due because Nix may be writing a question.
    Owed,
    /// An answer is being written.
    BeingGiven,
    /// The last answer was given.
    LastGiven,
    /// The process was asked to end.
    Ending,
}

/// Decides whether the session or the end of the process answers.
#[derive(Debug)]
struct Answers {
    stage: Mutex<Stage>,
    changed: Condvar,
}

impl Answers {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called before the session writes `words`. Returns `None` if it must not write any longer,
    /// and `Some(true)` if `words` are an answer.
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

    /// Called after an answer was written.
    fn given(&self, words: &[u8]) {
        let mut stage = self.stage();
        if *stage == Stage::BeingGiven {
            let last = words.starts_with(TAKEN) || words == LAST_ANSWER;
            *stage = if last { Stage::LastGiven } else { Stage::Owed };
        }
        self.changed.notify_all();
    }

    /// Stops the session from writing. Returns whether an answer is due. Waits at most `patience`
    /// for an answer that is being written.
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
        let Some(is_answer) = ANSWERS.begin(words) else { park_forever() };
        // An answer is shorter than PIPE_BUF (except for a machine's name of more than 4 KiB), so
        // it is written completely or not at all (pipe(7)).
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

/// Handles signals that ask this process to end, as described [above](self). Must be called before
/// any thread is started.
pub(crate) fn watch() {
    hookrun_system::signals::when_told_to_end(end);
}

/// Stores an accepted build, which is closed if the process is asked to end.
pub(crate) fn taken(builders: &Path, id: i64) {
    *build() = Some((builders.to_owned(), id));
}

/// Called when the end of the build was recorded.
pub(crate) fn closed() {
    *build() = None;
}

/// Stops this thread if the process was asked to end, because the output of its children is a
/// consequence of that.
pub(crate) fn park_if_ending() {
    if ANSWERS.is_ending() {
        park_forever();
    }
}

/// Parks this thread until the process ends, which is soon.
fn park_forever() -> ! {
    loop {
        std::thread::park();
    }
}

fn build() -> MutexGuard<'static, Option<(PathBuf, i64)>> {
    BUILD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs on the thread that waits for signals.
fn end() {
    if ANSWERS.end(PATIENCE) && is_writable() {
        // `io::stderr` is not used, because the session may hold its lock.
        let _ = rustix::io::write(rustix::stdio::stderr(), LAST_ANSWER);
    }
    end_descendants(std::process::id());
    if let Some((builders, id)) = build().take() {
        // The database contains only statistics, so errors are ignored.
        let _ = Record::open(&builders)
            .and_then(|record| record.abandon(id, "the build hook was asked to end", now_ms()));
    }
    // The session may have started more processes before it stopped.
    end_descendants(std::process::id());
}

/// Returns whether the pipe to Nix accepts a line without waiting.
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
    fn an_answer_is_due_until_the_last_is_given() {
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
                "nothing more is written"
            );
        }
    }

    #[test]
    fn the_end_waits_for_an_answer_that_is_being_written() {
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
