use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::*;
use crate::builders::asker::{DEADLINE, PolicyFactory};
use crate::builders::policy::{Policy, PolicyError};
use crate::builders::record::{Outcome, Record, Selection};
use crate::builders::speech::{Ending, Timing};
use crate::builders::stock::{Build, Offer, Report, Target};
use crate::builders::types::{Action, Candidate, Decision, LocalMachine, Machine};

/// Plays the machines: what each does is in its URI.
#[derive(Default)]
struct Scripted {
    offers: Vec<String>,
}

struct ScriptedBuild(Ending);

impl Build for ScriptedBuild {
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> Report {
        let mut bytes = Vec::new();
        inputs.write(&mut bytes).unwrap();
        let written = reply.write_all(b"log\n");
        let code = if self.0 == Ending::Built { 0 } else { 56 };
        let ending = if written.is_err() { Ending::NixGone } else { self.0 };
        Report { ending, code, held: vec![b"held\n".to_vec()], closing: Vec::new(), timing: Timing::default() }
    }
}

impl StockHook for Scripted {
    fn offer(&mut self, _: &Settings, target: Target<'_>, _: &Request, relay: &mut dyn FnMut(&[u8])) -> Offer {
        let uri = target.machine.uri.as_str();
        self.offers.push(uri.to_owned());
        relay(b"@nix {\"action\":\"start\"}\n");
        match uri.trim_start_matches("ssh://").trim_end_matches(char::is_numeric) {
            "dead" => Offer::Failed("connection refused".to_owned()),
            "full" => Offer::Full,
            "panic" => panic!("defect"),
            "lost" => Offer::Accepted(Box::new(ScriptedBuild(Ending::Lost("unexpected end-of-file".to_owned())))),
            "bad" => Offer::Accepted(Box::new(ScriptedBuild(Ending::Failed("exit code 3".to_owned())))),
            _ => Offer::Accepted(Box::new(ScriptedBuild(Ending::Built))),
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

/// Where the slot files and the memory of a story are.
struct Place {
    directory: tempfile::TempDir,
    builders: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let builders = directory.path().join("builders");
        Self { directory, builders }
    }

    /// Where nothing can be remembered.
    fn forgetful() -> Self {
        Self { builders: PathBuf::from("/proc/nowhere"), ..Self::new() }
    }

    fn play(&self, bytes: &[u8], policy: Option<Select>, early_accept: bool) -> (End, String, Vec<String>) {
        let mut reply = Vec::new();
        let mut stock = Scripted::default();
        let end = self.session(bytes, &mut reply, &mut stock, policy, early_accept);
        (end, String::from_utf8(reply).unwrap(), stock.offers)
    }

    fn session(
        &self,
        input: &[u8],
        reply: impl Write,
        stock: &mut Scripted,
        policy: Option<Select>,
        early_accept: bool,
    ) -> End {
        let make = |select| -> PolicyFactory { Arc::new(move || Ok(Box::new(Fixed(select)) as Box<dyn Policy>)) };
        let nix = io::stderr();
        let session = Session {
            input,
            reply,
            nix: nix.as_fd(),
            stock,
            policy: policy.map(|select| Asker::new(make(select), DEADLINE)),
            nix_dirs: NixDirs { state: self.directory.path().join("nix"), ..NixDirs::from_env() },
            builders: self.builders.clone(),
            options: config::Builders { early_accept, ..config::Builders::default() },
        };
        session.run()
    }

    fn record(&self) -> Record {
        Record::read(&self.builders).unwrap().unwrap()
    }
}

fn play(bytes: &[u8], policy: Option<Select>) -> (End, String, Vec<String>) {
    Place::forgetful().play(bytes, policy, false)
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
    assert_eq!(end, End::Built(0));
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
    assert_eq!(end, End::Built(0));
    assert!(reply.contains("column 4"), "{reply}");
}

#[test]
fn a_panic_inside_still_answers() {
    let mut reply = Vec::new();
    let story = Story::machines("panic").asks(&here("a"));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Place::new().session(&story.bytes, &mut reply, &mut Scripted::default(), None, false)
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
        for early_accept in [false, true] {
            let mut stock = Scripted::default();
            Place::new().session(&story.bytes, Closing(writes), &mut stock, None, early_accept);
        }
    }
}

#[test]
fn a_policy_that_hangs_is_not_waited_for() {
    let hang: Select = |_| loop {
        std::thread::park();
    };
    let story = Story::machines("m1").asks(&here("a")).inputs();
    let (end, reply, _) = Place::new().play(&story.bytes, Some(hang), false);
    assert_eq!(end, End::Built(0));
    assert!(reply.contains("it did not answer within 2s"), "{reply}");
}

/// Cannot be built here.
fn elsewhere(name: &str) -> Request {
    Request::of(name, "aarch64-linux", &[], false)
}

fn far(machines: &[&str]) -> Story {
    let lines: Vec<String> = machines.iter().map(|machine| format!("{machine} aarch64-linux")).collect();
    Story::machines(&lines.join(";")).asks(&elsewhere("a")).inputs()
}

#[test]
fn accepted_before_connecting_and_moved_on() {
    let (end, reply, offers) = Place::new().play(&far(&["dead", "lost1", "good"]).bytes, None, true);
    assert_eq!(end, End::Built(0));
    assert_eq!(offers, ["ssh://dead", "ssh://lost1", "ssh://good"]);
    let answer = reply.find("# accept\nssh://dead\n").unwrap();
    assert!(answer < reply.find("ssh://dead is lost").unwrap(), "the answer comes first: {reply}");
    let told: Vec<&str> =
        reply.lines().skip_while(|line| !line.starts_with("# ")).filter(|l| l.contains("hookrun")).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://dead is lost (connection refused); it goes on to ssh://lost1"}
    @nix {"action":"msg","level":1,"msg":"hookrun: a: machine ssh://lost1 is lost (unexpected end-of-file); it goes on to ssh://good"}
    "#);
    assert!(!reply.contains("held"), "errors of lost machines are not shown");
}

#[test]
fn a_build_that_fails_is_not_tried_again() {
    let (end, reply, offers) = Place::new().play(&far(&["bad", "good"]).bytes, None, true);
    assert_eq!((end, offers.len()), (End::Built(56), 1), "the exit code of the stock hook");
    assert!(reply.ends_with("log\nheld\n"), "its error is shown: {reply}");
}

#[test]
fn a_build_that_nobody_can_take_any_more_fails_with_all_reasons() {
    let (end, reply, _) = Place::new().play(&far(&["dead1", "dead2"]).bytes, None, true);
    assert_eq!(end, End::Built(1));
    let last = reply.lines().last().unwrap();
    insta::assert_snapshot!(last, @r#"@nix {"action":"msg","level":0,"msg":"hookrun: a was taken, and no machine is left to build it: ssh://dead1: connection refused; ssh://dead2: connection refused"}"#);
    let (end, _, offers) = Place::new().play(&far(&["lost1", "lost2", "lost3", "lost4"]).bytes, None, true);
    assert_eq!((end, offers.len()), (End::Built(1), 3), "a build that loses its machines is stopped");
}

#[test]
fn connected_first_where_something_could_be_lost() {
    let story = Story::machines("dead;m1").asks(&here("a")).inputs();
    let place = Place::new();
    let (_, reply, _) = place.play(&story.bytes, None, true);
    assert!(reply.contains("# accept\nssh://m1"), "it can be built here: {reply}");
    assert!(reply.find("skipped").unwrap() < reply.find("# accept").unwrap());
    // Now one is proven.
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://m1"], "and the other one is out");
    assert!(!reply.contains("skipped"));
    let place = Place::new();
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(answers(&reply), ["# accept"], "it cannot be built here anyway");
    let (_, reply, _) = place.play(&far(&["dead"]).bytes, None, true);
    assert_eq!(answers(&reply).first(), Some(&"# decline"), "but the machine is known to be dead now");
}

#[test]
fn what_is_remembered() {
    let place = Place::new();
    place.play(&far(&["dead", "lost1", "good"]).bytes, None, true);
    let record = place.record();
    let machines = record.machines().unwrap();
    assert_eq!((machines["ssh://dead"].failures, machines["ssh://lost1"].failures), (1, 1));
    assert!(machines["ssh://good"].succeeded_ms.is_some());
    let build = record.builds(Selection::Last(1)).unwrap().remove(0);
    assert_eq!((build.machine.as_str(), build.outcome, build.moves.len()), ("ssh://good", Some(Outcome::Built), 2));
    let decision = record.decisions(Selection::Derivation(&build.drv_path)).unwrap().remove(0);
    assert_eq!((decision.decided_by.as_str(), decision.answer.as_str()), ("Nix's rule", "accept, before connecting"));
    let verdicts: Vec<String> = decision
        .machines
        .iter()
        .map(|verdict| format!("{} {:?} {}", verdict.machine, verdict.rank, verdict.reason))
        .collect();
    insta::assert_snapshot!(verdicts.join("\n"), @r"
    ssh://dead Some(1) taken
    ssh://lost1 Some(2) another was better or had its slot first
    ssh://good Some(3) another was better or had its slot first
    ");
}

#[test]
fn all_machines_out_is_built_here_or_tried_all_the_same() {
    let place = Place::new();
    let story = Story::machines("dead").asks(&here("a"));
    place.play(&story.bytes, None, true);
    let (_, reply, offers) = place.play(&story.bytes, None, true);
    assert_eq!((answers(&reply), offers.len()), (vec!["# decline"], 0));
    assert!(reply.contains("is tried again in"), "{reply}");
    let story = Story::machines("dead aarch64-linux").asks(&elsewhere("a"));
    let (_, _, offers) = place.play(&story.bytes, None, true);
    assert_eq!(offers, ["ssh://dead"], "nobody else can build it");
}

/// Every session of a thousand has its faults at random: garbage, an early end, a reader that goes away, machines of all kinds.
#[test]
fn a_thousand_sessions_with_faults() {
    use rand::{RngExt as _, SeedableRng as _};
    struct Failing(Vec<u8>, usize);
    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = self.1.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    const KINDS: [&str; 5] = ["dead", "full", "lost", "bad", "good"];
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    let place = Place::new();
    for session in 0..1000 {
        let machines: Vec<String> =
            (0..random.random_range(1..4)).map(|number| format!("{}{number}", KINDS[random.random_range(0..5)])).collect();
        let mut story = far(&machines.iter().map(String::as_str).collect::<Vec<_>>());
        let mut after_settings = Vec::new();
        elsewhere("a").write(&mut after_settings).unwrap();
        Inputs::of(&["/nix/store/a"]).write(&mut after_settings).unwrap();
        let settings = story.bytes.len() - after_settings.len();
        let fault = random.random_range(0..3);
        let at = random.random_range(0..story.bytes.len());
        match fault {
            0 => story.bytes.truncate(at),
            1 => story.bytes[at] ^= random.random_range(1..=255u8),
            _ => {}
        }
        let writes = if fault == 2 { random.random_range(0..20) } else { usize::MAX };
        let mut reply = Failing(Vec::new(), writes);
        // Memory is kept from one to the next, so that health plays its part; but a full machine must not be waited for.
        let early_accept = !machines.iter().any(|machine| machine.starts_with("full"));
        place.session(&story.bytes, &mut reply, &mut Scripted::default(), None, early_accept);
        let text = String::from_utf8_lossy(&reply.0).into_owned();
        // One question; garbage may make a second one of the inputs, an early end none at all.
        // One answer. Where it was no accept, what follows the question is not understood, which ends the session.
        let answers = answers(&text);
        let (first, rest) = answers.split_first().map_or((None, &[][..]), |(first, rest)| (Some(*first), rest));
        assert!(rest.is_empty() || (first != Some("# accept") && rest == ["# decline-permanently"]), "{session}: {text}");
        // The settings end where the question begins.
        let asked = fault == 1 || (fault == 0 && at > 0 && at != settings);
        assert!(first.is_some() == asked || fault == 2, "session {session}, fault {fault} at {at}: {text}");
    }
}
