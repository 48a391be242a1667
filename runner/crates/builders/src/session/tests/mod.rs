//! Runs sessions with simulated machines, whose URIs determine their behaviour ([`Scripted`]): the
//! requests of Nix are a [`Conversation`], and slots and history are in a [`TestHost`].

mod answers;
mod delegated;
mod faults;
mod remembered;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::choice::policy::Policy;
use crate::choice::policy_thread::PolicyFactory;
use crate::history::Record;
use crate::run::stock::{Build, DelegationReport, Offer, Target};
use crate::run::stock_output::{DelegationOutcome, Timing};
use hookrun_nix::selection::PolicyError;
use hookrun_nix::selection::{Candidate, Decision, LocalMachine, Machine};

/// Plays the machines. The URI of each machine determines what it does.
#[derive(Default)]
struct Scripted {
    offers: Vec<String>,
}

struct ScriptedBuild(DelegationOutcome);

impl Build for ScriptedBuild {
    fn run(self: Box<Self>, inputs: &Inputs, reply: &mut dyn Write) -> DelegationReport {
        let mut bytes = Vec::new();
        inputs.write(&mut bytes).unwrap();
        let written = reply.write_all(b"log\n");
        let built = self.0 == DelegationOutcome::Built;
        let code = if built { 0 } else { 56 };
        let ending = if written.is_err() { DelegationOutcome::NixGone } else { self.0 };
        DelegationReport {
            ending,
            code,
            held: if built { Vec::new() } else { vec![b"held\n".to_vec()] },
            closing: Vec::new(),
            timing: Timing::default(),
        }
    }
}

impl StockHook for Scripted {
    fn offer(
        &mut self,
        _: &Settings,
        target: Target<'_>,
        _: &Request,
        relay: &mut dyn FnMut(&[u8]),
    ) -> Offer {
        let uri = target.machine.uri.as_str();
        self.offers.push(uri.to_owned());
        relay(b"@nix {\"action\":\"start\"}\n");
        match uri.trim_start_matches("ssh://").trim_end_matches(char::is_numeric) {
            "dead" => Offer::Failed("connection refused".to_owned()),
            "full" => Offer::Full,
            "here" => Offer::Here("Nix's database is locked".to_owned()),
            "disk" => Offer::Accepted(Box::new(ScriptedBuild(DelegationOutcome::Here(
                "cannot store the outputs: No space left on device".to_owned(),
            )))),
            "panic" => panic!("defect"),
            "lost" => Offer::Accepted(Box::new(ScriptedBuild(DelegationOutcome::Lost(
                "unexpected end-of-file".to_owned(),
            )))),
            "bad" => Offer::Accepted(Box::new(ScriptedBuild(DelegationOutcome::Failed(
                "exit code 3".to_owned(),
            )))),
            _ => Offer::Accepted(Box::new(ScriptedBuild(DelegationOutcome::Built))),
        }
    }
}

type Select = fn(&[Machine]) -> Result<Decision, PolicyError>;

struct Fixed(Select);

impl Policy for Fixed {
    fn select(
        &self,
        _: &Candidate,
        machines: &[Machine],
        _: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        (self.0)(machines)
    }
}

struct Conversation {
    bytes: Vec<u8>,
    policy: Option<Select>,
}

impl Conversation {
    fn machines(builders: &str) -> Self {
        let settings = Settings::of(&[
            ("builders", builders),
            ("max-jobs", "1"),
            ("system", "x86_64-linux"),
            ("system-features", ""),
        ]);
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
struct TestHost {
    directory: tempfile::TempDir,
    builders: PathBuf,
    /// The time limit of a policy, which is long enough for a busy machine.
    deadline: Duration,
}

impl TestHost {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let builders = directory.path().join("builders");
        Self { directory, builders, deadline: Duration::from_mins(1) }
    }

    /// Returns a place without a history.
    fn forgetful() -> Self {
        Self { builders: PathBuf::from("/proc/nowhere"), ..Self::new() }
    }

    fn play(
        &self,
        bytes: &[u8],
        policy: Option<Select>,
        early_accept: bool,
    ) -> (End, String, Vec<String>) {
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
        let make = |select| -> PolicyFactory {
            Arc::new(move || Ok(Box::new(Fixed(select)) as Box<dyn Policy>))
        };
        let nix = io::stderr();
        let session = Session {
            input,
            reply,
            nix: nix.as_fd(),
            stock,
            policy: policy.map(|select| PolicyThread::new(make(select), self.deadline)),
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
    TestHost::forgetful().play(bytes, policy, false)
}

fn here(name: &str) -> Request {
    Request::of(name, "x86_64-linux", &[], true)
}

/// Returns only the answers.
fn answers(reply: &str) -> Vec<&str> {
    reply.lines().filter(|line| line.starts_with("# ")).collect()
}

/// Returns a request that cannot be built on this machine.
fn elsewhere(name: &str) -> Request {
    Request::of(name, "aarch64-linux", &[], false)
}

fn far(machines: &[&str]) -> Conversation {
    let lines: Vec<String> =
        machines.iter().map(|machine| format!("{machine} aarch64-linux")).collect();
    Conversation::machines(&lines.join(";")).asks(&elsewhere("a")).inputs()
}
