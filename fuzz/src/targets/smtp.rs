//! What a mail server may answer.
//!
//! The bytes are all that the server sends in one dialogue, whatever the client sends. Asserted:
//! each recipient is delivered to, refused or left, and never two of them; and no reply is larger
//! than its bounds.

use std::io::Cursor;
use std::sync::LazyLock;
use std::time::Duration;

use hookrun_capability::mail::smtp::dialogue::{Dialogue, DialogueError, ReplyTimeouts};
use hookrun_capability::mail::smtp::reply::{MAX_LINES, MAX_REPLY, Reply};
use tokio::runtime::Runtime;

const TO: [&str; 3] = ["a@example.org", "b@example.org", "c@example.org"];
/// No server of a test is slow.
const PATIENCE: ReplyTimeouts =
    ReplyTimeouts { command: Duration::from_mins(1), message: Duration::from_mins(1) };

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());

pub(crate) fn run(data: &[u8]) {
    for (login, tls) in [(false, false), (true, false), (false, true)] {
        RUNTIME.block_on(talk(data, login, tls));
    }
}

async fn talk(data: &[u8], login: bool, tls: bool) {
    let stream = || Box::new(tokio::io::join(Cursor::new(data.to_vec()), tokio::io::sink()));
    let mut dialogue = match Dialogue::begin(stream(), "[127.0.0.1]", PATIENCE).await {
        Ok(dialogue) => dialogue,
        Err((_, problem)) => return check(&problem),
    };
    if tls {
        match dialogue.start_tls().await {
            Ok(stream) => match Dialogue::resume(stream, "[127.0.0.1]", PATIENCE).await {
                Ok(resumed) => dialogue = resumed,
                Err((_, problem)) => return check(&problem),
            },
            Err((_, problem)) => return check(&problem),
        }
    }
    if login && let Err((_, problem)) = dialogue.login("user", "pass").await {
        return check(&problem);
    }
    let mut delivered: Vec<&str> = Vec::new();
    let sent = dialogue
        .send("from@example.org", &TO, b"text\r\n.\r\n", |recipient| delivered.push(recipient))
        .await;
    let mut seen = delivered.clone();
    match sent {
        Ok(refused) => {
            for (recipient, reply) in &refused {
                check_reply(reply);
                assert!(!reply.is_positive(), "{recipient} was refused with {reply}");
                seen.push(recipient);
            }
            seen.sort_unstable();
            assert_eq!(seen, TO, "each recipient has one verdict");
        }
        Err((_, problem)) => {
            check(&problem);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), delivered.len(), "nobody is delivered to twice");
        }
    }
    dialogue.quit().await;
}

fn check(problem: &DialogueError) {
    match problem {
        DialogueError::Refused(reply) => check_reply(reply),
        DialogueError::Silent(_) => panic!("a server that has ended is not silent"),
        DialogueError::Reply(error) => assert!(!error.to_string().is_empty()),
        DialogueError::Lacking(what) => assert!(!what.is_empty()),
    }
}

fn check_reply(reply: &Reply) {
    let bytes: usize = reply.lines.iter().map(String::len).sum();
    // A byte that is not UTF-8 is shown as three.
    assert!(reply.lines.len() <= MAX_LINES && bytes <= 3 * MAX_REPLY, "{}", reply.lines.len());
    assert!((200..600).contains(&reply.code) && !reply.to_string().contains('\n'));
}
