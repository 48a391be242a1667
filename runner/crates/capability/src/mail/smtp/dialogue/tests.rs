use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;

const PATIENCE: ReplyTimeouts =
    ReplyTimeouts { command: Duration::from_secs(20), message: Duration::from_secs(20) };

/// A server that replies to each command with the result of `answer`, and records all commands.
async fn serve(stream: DuplexStream, answer: impl Fn(&str) -> String) -> Vec<String> {
    let mut stream = BufReader::new(stream);
    let mut heard = Vec::new();
    stream.write_all(b"220 here\r\n").await.unwrap();
    let mut in_message = false;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            return heard;
        }
        let line = line.strip_suffix("\r\n").unwrap().to_owned();
        heard.push(line.clone());
        let reply = match (in_message, line.as_str()) {
            (true, ".") => {
                in_message = false;
                answer("END")
            }
            (true, _) => continue,
            (false, "QUIT") => "221 bye".to_owned(),
            (false, command) => {
                let reply = answer(command);
                in_message = command == "DATA" && reply.starts_with('3');
                reply
            }
        };
        // The client closes the connection when it has enough.
        if stream.write_all(format!("{reply}\r\n").as_bytes()).await.is_err() {
            return heard;
        }
    }
}

fn willing(command: &str) -> String {
    match command {
        "DATA" => "354 go on",
        command if command.starts_with("EHLO") => {
            "250-here\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS"
        }
        _ => "250 ok",
    }
    .to_owned()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The recipients that got `message`, the refused ones with their replies, and the commands.
struct Told {
    delivered: Vec<String>,
    refused: Result<Vec<(String, String)>>,
    heard: Vec<String>,
}

fn send(to: &[&str], message: &[u8], answer: impl Fn(&str) -> String) -> Told {
    run(async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let mut delivered = Vec::new();
        let talk = async {
            let mut dialogue = Dialogue::begin(Box::new(client), "me", PATIENCE).await?;
            let told = |recipient: &str| delivered.push(recipient.to_owned());
            let refused = dialogue.send("from@example.org", to, message, told).await?;
            dialogue.quit().await;
            Ok(refused
                .into_iter()
                .map(|(recipient, reply)| (recipient.to_owned(), reply.to_string()))
                .collect())
        };
        let (refused, heard) = tokio::join!(talk, serve(server, answer));
        Told { delivered, refused, heard }
    })
}

#[test]
fn a_refused_recipient_does_not_prevent_delivery_to_the_others() {
    for to in [["gone@b", "here@b"], ["here@b", "gone@b"]] {
        let told = send(&to, b"text\r\n", |command| match command {
            "RCPT TO:<gone@b>" => "550 5.1.1 no such user".to_owned(),
            other => willing(other),
        });
        assert_eq!(told.delivered, ["here@b"]);
        assert_eq!(told.refused.unwrap(), [("gone@b".into(), "550 5.1.1 no such user".into())]);
        assert_eq!(told.heard[0], "EHLO me");
    }
}

#[test]
fn no_message_is_sent_if_all_recipients_are_refused() {
    let told = send(&["a@b"], b"text\r\n", |command| match command {
        "RCPT TO:<a@b>" => "450 later".to_owned(),
        other => willing(other),
    });
    assert_eq!(told.delivered, Vec::<String>::new());
    assert_eq!(told.refused.unwrap().len(), 1);
    assert!(!told.heard.contains(&"DATA".to_owned()), "{:?}", told.heard);
}

#[test]
fn a_server_that_takes_few_recipients_at_once_gets_the_message_several_times() {
    let count = std::cell::Cell::new(0);
    let told = send(&["a@b", "b@b", "c@b", "d@b", "e@b"], b"text\r\n", |command| {
        if command.starts_with("MAIL") {
            count.set(0);
        } else if command.starts_with("RCPT") {
            count.set(count.get() + 1);
            if count.get() > 2 {
                return "452 4.5.3 too many recipients".to_owned();
            }
        }
        willing(command)
    });
    assert_eq!(told.delivered, ["a@b", "b@b", "c@b", "d@b", "e@b"]);
    assert_eq!(told.refused.unwrap(), []);
    assert_eq!(told.heard.iter().filter(|line| *line == "DATA").count(), 3);
}

#[test]
fn a_message_that_is_refused_after_its_data_was_delivered_to_no_recipient() {
    let told = send(&["a@b"], b"text\r\n", |command| match command {
        "END" => "554 looks like spam".to_owned(),
        other => willing(other),
    });
    assert_eq!(told.delivered, Vec::<String>::new());
    let (step, problem) = told.refused.unwrap_err();
    assert!(step == Step::Message && matches!(problem, DialogueError::Refused(_)), "{problem:?}");
}

#[test]
fn an_old_server_gets_helo() {
    let told = send(&["a@b"], b"text\r\n", |command| match command {
        "EHLO me" => "502 what".to_owned(),
        other => willing(other),
    });
    assert_eq!(told.delivered, ["a@b"]);
    assert_eq!(told.heard[1], "HELO me");
}

#[test]
fn a_login_uses_plain_or_login() {
    for (offered, expected) in [
        ("250-here\r\n250 AUTH LOGIN PLAIN", &["AUTH PLAIN AHVzZXIAcGFzcw=="][..]),
        ("250-here\r\n250 AUTH=LOGIN", &["AUTH LOGIN", "dXNlcg==", "cGFzcw=="]),
    ] {
        let heard = run(async {
            let (client, server) = tokio::io::duplex(1 << 16);
            let talk = async {
                let mut dialogue = Dialogue::begin(Box::new(client), "me", PATIENCE).await.unwrap();
                dialogue.login("user", "pass").await.unwrap();
            };
            let answer = |command: &str| match command {
                "EHLO me" => offered.to_owned(),
                "AUTH LOGIN" | "dXNlcg==" => "334 VXNlcm5hbWU6".to_owned(),
                _ => "235 welcome".to_owned(),
            };
            tokio::join!(talk, serve(server, answer)).1
        });
        assert_eq!(heard[1..], *expected);
    }
}

#[test]
fn text_after_the_reply_to_starttls_does_not_count_as_encrypted() {
    let problem = run(async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let talk = async {
            let dialogue = Dialogue::begin(Box::new(client), "me", PATIENCE).await.unwrap();
            dialogue.start_tls().await.map(drop).unwrap_err().1
        };
        let answer = |command: &str| match command {
            "STARTTLS" => "220 go\r\n250-injected\r\n250 AUTH PLAIN".to_owned(),
            other => willing(other),
        };
        tokio::join!(talk, serve(server, answer)).0
    });
    assert!(matches!(problem, DialogueError::Reply(ReplyError::Malformed(_))), "{problem:?}");
}

#[test]
fn a_silent_server_is_given_up_after_the_time_limit_of_a_command() {
    let problem = run(async {
        // The other end stays open.
        let (client, _server) = tokio::io::duplex(1 << 16);
        let patience = ReplyTimeouts { command: Duration::from_millis(30), ..PATIENCE };
        Dialogue::begin(Box::new(client), "me", patience).await.map(drop).unwrap_err()
    });
    assert!(matches!(problem, (Step::Connect, DialogueError::Silent(_))), "{problem:?}");
}

#[test]
fn a_line_without_an_end_is_given_up() {
    let problem = run(async {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let flood = async {
            // The loop ends when the client closes the connection.
            while server.write_all(&[b'2'; 4096]).await.is_ok() {}
        };
        let talk = Dialogue::begin(Box::new(client), "me", PATIENCE);
        let (talked, ()) = tokio::join!(talk, flood);
        talked.map(drop).unwrap_err()
    });
    assert!(matches!(problem, (_, DialogueError::Reply(ReplyError::Line))), "{problem:?}");
}

#[test]
fn a_dot_and_odd_line_ends_do_not_end_a_message() {
    let text = |message: &[u8]| String::from_utf8(stuffed(message)).unwrap();
    assert_eq!(text(b"a\r\n.\r\n..b\r\n"), "a\r\n..\r\n...b\r\n.\r\n");
    assert_eq!(text(b"a\r.\rb"), "a\r\n..\r\nb\r\n.\r\n", "CR alone");
    assert_eq!(text(b"a\n.\nb"), "a\r\n..\r\nb\r\n.\r\n", "LF alone");
    assert_eq!(text(b"a\r\n\0.\r\nb"), "a\r\n..\r\nb\r\n.\r\n", "NUL");
    assert_eq!(text(b""), ".\r\n");
}

proptest! {
    /// Every message has exactly one end, and only CR LF ends a line.
    #[test]
    fn a_message_ends_once(message in proptest::collection::vec(
        prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(0), Just(b'a')], 0..40)
    ) {
        let wire = stuffed(&message);
        let text = String::from_utf8(wire).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        let (last, body) = lines.split_last().unwrap();
        prop_assert_eq!(*last, "");
        prop_assert_eq!(body.last(), Some(&"."));
        for line in body.iter().rev().skip(1) {
            prop_assert!(*line != "." && !line.contains(['\r', '\n', '\0']));
        }
    }
}
