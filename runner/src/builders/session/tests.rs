use std::io;
use std::time::Duration;

use super::*;
use crate::builders::asker::DEADLINE;
use crate::builders::policy::{Policy, PolicyError};

/// Plays the machines: what it does is in the URI.
#[derive(Default)]
struct Scripted {
    offers: Vec<String>,
}

struct ScriptedBuild(Vec<u8>);

impl Build for ScriptedBuild {
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> u8 {
        let mut bytes = Vec::new();
        inputs.write(&mut bytes).unwrap();
        reply.write_all(&self.0).unwrap();
        u8::try_from(bytes.len()).unwrap()
    }
}

impl StockHook for Scripted {
    fn offer(&mut self, _: &Settings, line: &str, _: &Request, relay: &mut dyn FnMut(&[u8])) -> Offer {
        let uri = line.split(' ').next().unwrap_or_default();
        self.offers.push(uri.to_owned());
        relay(b"@nix {\"action\":\"start\"}\n");
        match uri.trim_start_matches("ssh://").trim_end_matches(char::is_numeric) {
            "dead" => Offer::Failed("connection refused".to_owned()),
            "full" => Offer::Full,
            "panic" => panic!("defect"),
            _ => Offer::Accepted { name: uri.into(), build: Box::new(ScriptedBuild(b"log\n".to_vec())) },
        }
    }
}

type Select = fn(&[Machine]) -> Result<Decision, PolicyError>;

struct Fixed(Select);
impl Policy for Fixed {
    fn select(&self, _: &Candidate, machines: &[Machine], _: &LocalMachine) -> Result<Decision, PolicyError> {
        (self.0)(machines)
    }
}

struct Story {
    bytes: Vec<u8>,
    policy: Option<Select>,
}

impl Story {
    fn machines(builders: &str) -> Self {
        let settings =
            Settings::of(&[("builders", builders), ("max-jobs", "1"), ("system", "x86_64-linux"), ("system-features", "")]);
        Self { bytes: settings.bytes(), policy: None }
    }

    fn policy(mut self, select: Select) -> Self {
        self.policy = Some(select);
        self
    }

    fn asks(mut self, request: &Request) -> Self {
        request.write(&mut self.bytes).unwrap();
        self
    }

    fn inputs(mut self) -> Self {
        Inputs::of(&["/nix/store/a"]).write(&mut self.bytes).unwrap();
        self
    }

    fn play(&self) -> (End, String, Vec<String>) {
        play(&self.bytes, self.policy)
    }
}

fn play(bytes: &[u8], policy: Option<Select>) -> (End, String, Vec<String>) {
    let mut reply = Vec::new();
    let mut stock = Scripted::default();
    let asker = policy.map(|select| Asker::new(Box::new(move || Ok(Box::new(Fixed(select)) as Box<dyn Policy>)), DEADLINE));
    let session = Session {
        input: bytes,
        reply: &mut reply,
        stock: &mut stock,
        policy: asker,
        nix_state: PathBuf::from("/nonexistent"),
    };
    let end = session.run();
    (end, String::from_utf8(reply).unwrap(), stock.offers)
}

fn here(name: &str) -> Request {
    Request::of(name, "x86_64-linux", &[], true)
}

/// The answers alone.
fn answers(reply: &str) -> Vec<&str> {
    reply.lines().filter(|line| line.starts_with("# ")).collect()
}

#[test]
fn a_dead_machine_is_skipped_in_one_request() {
    let (end, reply, offers) = Story::machines("dead - - 1 9;good").asks(&here("a")).inputs().play();
    assert_eq!(end, End::Built(56), "the exit code of the stock hook");
    assert_eq!(offers, ["ssh://dead", "ssh://good"]);
    insta::assert_snapshot!(reply, @r#"
    @nix {"action":"msg","level":4,"msg":"hookrun: a goes to ssh://dead, then ssh://good: load 0/1 at factor 9"}
    @nix {"action":"start"}
    @nix {"action":"msg","level":1,"msg":"hookrun: machine ssh://dead skipped: connection refused"}
    @nix {"action":"start"}
    # accept
    ssh://good
    log
    "#);
}

#[test]
fn a_machine_that_failed_stays_out_for_the_session() {
    let (_, reply, offers) = Story::machines("dead").asks(&here("a")).asks(&here("b")).play();
    assert_eq!(offers, ["ssh://dead"]);
    assert_eq!(answers(&reply), ["# decline", "# decline"]);
}

#[test]
fn all_dead_is_a_decline_and_a_plain_line() {
    let other = Request::of("a", "aarch64-linux", &["kvm"], false);
    let (end, reply, _) =
        Story::machines("dead1 aarch64-linux - - - kvm;dead2 aarch64-linux - - - kvm;good").asks(&other).play();
    assert_eq!(end, End::Closed);
    assert_eq!(answers(&reply), ["# decline"], "so that Nix says itself that it cannot build, and does not wait");
    insta::assert_snapshot!(reply.lines().rev().nth(1).unwrap(), @r#"@nix {"action":"msg","level":1,"msg":"hookrun: no machine can take a (aarch64-linux, kvm): of 3, 2 cannot be used and 1 do not fit"}"#);
}

#[test]
fn full_machines() {
    let answer = |willing: bool| {
        let (_, reply, _) = Story::machines("full;dead").asks(&Request::of("a", "x86_64-linux", &[], willing)).play();
        answers(&reply).concat()
    };
    assert_eq!(answer(true), "# decline");
    assert_eq!(answer(false), "# postpone");
}

#[test]
fn no_machine_at_all() {
    let (end, reply, _) = Story::machines("# none").asks(&here("a")).asks(&here("b")).play();
    assert_eq!((end, reply.as_str()), (End::Closed, "# decline-permanently\n"));
}

#[test]
fn the_policy_decides() {
    let decided = |select: Select| {
        let (_, reply, offers) = Story::machines("m1;m2 - - 1 4").policy(select).asks(&here("a")).play();
        format!("{} {}", answers(&reply).join(" "), offers.join(" "))
    };
    assert_eq!(
        decided(|machines| {
            let uris = machines.iter().map(|machine| machine.uri.clone()).collect();
            Ok(Decision::new(Action::Machines(uris), "in order"))
        }),
        "# accept ssh://m1"
    );
    assert_eq!(decided(|_| Ok(Decision::new(Action::Local, ""))), "# decline ");
    assert_eq!(decided(|_| Ok(Decision::new(Action::Decline, ""))), "# decline ");
    assert_eq!(decided(|_| Ok(Decision::new(Action::Postpone, ""))), "# postpone ");
}

#[test]
fn a_policy_that_fails_is_replaced_by_the_rule_of_nix_with_one_line() {
    let selects: [Select; 3] = [
        |_| Err(PolicyError::Failed("trap: unreachable".to_owned())),
        |_| Ok(Decision::new(Action::Machines(vec!["ssh://m3".to_owned()]), "")),
        |_| panic!("defect"),
    ];
    for select in selects {
        let story = Story::machines("full;m1 - - 1 4").policy(select).asks(&Request::of("a", "riscv64-linux", &[], true));
        let (_, reply, offers) = story.asks(&here("b")).asks(&here("c")).inputs().play();
        assert_eq!(answers(&reply), ["# decline", "# accept"]);
        assert_eq!(offers, ["ssh://m1"]);
        assert_eq!(reply.matches("gave no answer").count(), 1, "{reply}");
        assert!(reply.contains("Nix's own rule is used"));
    }
}

#[test]
fn lines_that_are_wrong_cost_only_themselves() {
    let (end, reply, _) = Story::machines("bad - - many;good").asks(&here("a")).inputs().play();
    assert_eq!(end, End::Built(56));
    assert!(reply.contains("column 4"), "{reply}");
}

#[test]
fn a_panic_inside_still_answers() {
    let mut reply = Vec::new();
    let story = Story::machines("panic").asks(&here("a"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (input, nix_state) = (story.bytes.as_slice(), PathBuf::from("/nonexistent"));
        Session { input, reply: &mut reply, stock: &mut Scripted::default(), policy: None, nix_state }.run()
    }));
    assert!(result.is_err());
    assert_eq!(answers(&String::from_utf8(reply).unwrap()), ["# decline-permanently"]);
}

/// A conversation with a dead machine, a full one, one that is not there, and a build.
fn recorded() -> (Story, Vec<usize>) {
    let mut story = Story::machines("dead x86_64-linux - 4 2 kvm;full x86_64-linux;m1 aarch64-linux - 1 1 big");
    let mut ends = vec![story.bytes.len()];
    for request in [
        here("a"),
        Request::of("b", "x86_64-linux", &["kvm"], false),
        Request::of("c", "riscv64-linux", &[], true),
        here("d"),
    ] {
        story = story.asks(&request);
        ends.push(story.bytes.len());
    }
    story = story.asks(&Request::of("e", "aarch64-linux", &["big"], true));
    ends.push(story.bytes.len());
    (story.inputs(), ends)
}

#[test]
fn the_stream_may_end_at_every_byte() {
    let (story, ends) = recorded();
    for cut in 0..=story.bytes.len() {
        let (_, reply, _) = play(&story.bytes[..cut], None);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let asked = whole.saturating_sub(1);
        // A question that was begun is answered too; nobody reads it. After the accept there are no questions.
        let begun = usize::from(cut > 0 && asked < 5 && !ends.contains(&cut));
        assert_eq!(answers(&reply).len(), asked + begun, "cut at {cut}: {reply}");
    }
}

#[test]
fn every_byte_may_be_garbage() {
    let (story, _) = recorded();
    for index in 0..story.bytes.len() {
        for garbage in [0x00, 0x01, 0x7f, 0xff] {
            let mut bytes = story.bytes.clone();
            bytes[index] = garbage;
            let (_, reply, _) = play(&bytes, None);
            let count = answers(&reply).len();
            // Five questions, and at most one more that the garbage makes of the inputs.
            assert!((1..=6).contains(&count), "{garbage:#x} at {index}: {reply}");
        }
    }
}

#[test]
fn nix_may_go_away_at_every_write() {
    struct Closing(usize);
    impl Write for Closing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (story, _) = recorded();
    for writes in 0..40 {
        let (input, nix_state) = (story.bytes.as_slice(), PathBuf::from("/nonexistent"));
        let mut stock = Scripted::default();
        let session = Session { input, reply: Closing(writes), stock: &mut stock, policy: None, nix_state };
        // The scripted build insists on its write, as a test; a real one returns a code.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run()));
    }
}

#[test]
fn a_policy_that_hangs_is_not_waited_for() {
    let hang: Select = |_| loop {
        std::thread::park();
    };
    let mut reply = Vec::new();
    let mut stock = Scripted::default();
    let story = Story::machines("m1").asks(&here("a")).inputs();
    let asker = Asker::new(Box::new(move || Ok(Box::new(Fixed(hang)) as Box<dyn Policy>)), Duration::from_millis(20));
    let nix_state = PathBuf::from("/nonexistent");
    let session =
        Session { input: story.bytes.as_slice(), reply: &mut reply, stock: &mut stock, policy: Some(asker), nix_state };
    assert_eq!(session.run(), End::Built(56));
    assert!(String::from_utf8(reply).unwrap().contains("it did not answer within 20ms"));
}
