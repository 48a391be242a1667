//! Asks the policy on a separate thread, within a time limit, so that a policy that hangs or panics
//! loses only its own answer.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::choice::policy::{Policy, checked};
use hookrun_nix::selection::PolicyError;
use hookrun_nix::selection::{Candidate, Decision, LocalMachine, Machine};

/// The time limit of a policy for one candidate, including loading. The whole Nix command is
/// blocked meanwhile.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Creates the policy, on its thread, when it is first asked and when it is asked after a stop.
pub type PolicyFactory = Arc<dyn Fn() -> Result<Box<dyn Policy>, PolicyError> + Send + Sync>;

type Question = (Candidate, Arc<[Machine]>, LocalMachine);
type PolicyAnswer = Result<Decision, PolicyError>;

/// A policy with the thread that it runs on.
pub struct PolicyThread {
    factory: PolicyFactory,
    deadline: Duration,
    state: State,
}

enum State {
    Stopped,
    Running(Sender<Question>, Receiver<PolicyAnswer>),
    Broken(PolicyError),
}

impl PolicyThread {
    /// Returns a policy that is created when it is first asked.
    pub fn new(factory: PolicyFactory, deadline: Duration) -> Self {
        Self { factory, deadline, state: State::Stopped }
    }

    /// Ends the policy's thread, and its process if it has one. The next question starts it again.
    pub fn stop(&mut self) {
        if let State::Running(..) = self.state {
            self.state = State::Stopped;
        }
    }

    /// Asks the policy, and returns its checked answer.
    ///
    /// # Errors
    /// There is no usable answer. A policy that could not be created, panicked or did not answer in
    /// time is not asked again.
    pub fn ask(
        &mut self,
        candidate: &Candidate,
        machines: &Arc<[Machine]>,
        local: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        if let State::Stopped = self.state {
            self.state = start(Arc::clone(&self.factory));
        }
        let (questions, answers) = match &self.state {
            State::Running(questions, answers) => (questions, answers),
            State::Broken(error) => return Err(error.clone()),
            State::Stopped => return Err(gone()),
        };
        // A thread that has ended may have left an answer with the reason.
        let _asked = questions.send((candidate.clone(), Arc::clone(machines), local.clone()));
        let answer = answers.recv_timeout(self.deadline);
        match answer {
            Ok(Err(
                error @ (PolicyError::Unavailable(_)
                | PolicyError::NotReady(_)
                | PolicyError::NoPolicy),
            )) => {
                self.state = State::Broken(error.clone());
                Err(error)
            }
            Ok(answer) => answer.and_then(|decision| checked(decision, machines, local)),
            Err(RecvTimeoutError::Timeout) => {
                let error = PolicyError::TimedOut(self.deadline);
                self.state = State::Broken(error.clone());
                Err(error)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.state = State::Broken(gone());
                Err(gone())
            }
        }
    }
}

fn gone() -> PolicyError {
    PolicyError::Failed("it panicked, a defect of hookrun".to_owned())
}

fn start(factory: PolicyFactory) -> State {
    let (questions, asked) = mpsc::channel::<Question>();
    let (answer, answers) = mpsc::channel::<PolicyAnswer>();
    let body = move || {
        let policy = match factory() {
            Ok(policy) => policy,
            Err(error) => {
                let error = match error {
                    PolicyError::NotReady(_) | PolicyError::NoPolicy => error,
                    error => PolicyError::Unavailable(error.to_string()),
                };
                let _ = answer.send(Err(error));
                return;
            }
        };
        for (candidate, machines, local) in asked {
            if answer.send(policy.select(&candidate, &machines, &local)).is_err() {
                return;
            }
        }
    };
    match std::thread::Builder::new().name("policy".to_owned()).spawn(body) {
        Ok(_) => State::Running(questions, answers),
        Err(error) => {
            State::Broken(PolicyError::Failed(format!("its thread cannot be started ({error})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StockRule;

    struct Odd(fn() -> PolicyAnswer);
    impl Policy for Odd {
        fn select(&self, _: &Candidate, _: &[Machine], _: &LocalMachine) -> PolicyAnswer {
            (self.0)()
        }
    }

    fn ask(thread: &mut PolicyThread) -> PolicyAnswer {
        let candidate =
            crate::protocol::request::Request::of("a", "x86_64-linux", &[], true).candidate();
        let machine = Machine { uri: "ssh://m".into(), ..Machine::default() };
        thread.ask(&candidate, &[machine].into(), &LocalMachine::default())
    }

    fn odd(select: fn() -> PolicyAnswer, deadline: Duration) -> PolicyThread {
        PolicyThread::new(Arc::new(move || Ok(Box::new(Odd(select)) as Box<dyn Policy>)), deadline)
    }

    #[test]
    fn valid_answers_are_returned() {
        let mut thread = PolicyThread::new(
            Arc::new(|| Ok(Box::new(StockRule::default()) as Box<dyn Policy>)),
            DEADLINE,
        );
        assert!(ask(&mut thread).is_ok());
        assert!(ask(&mut thread).is_ok(), "asked again");
    }

    #[test]
    fn invalid_answers_are_errors() {
        let hang = || loop {
            std::thread::park();
        };
        let mut hangs = odd(hang, Duration::from_millis(50));
        assert_eq!(ask(&mut hangs), Err(PolicyError::TimedOut(Duration::from_millis(50))));
        assert_eq!(
            ask(&mut hangs),
            Err(PolicyError::TimedOut(Duration::from_millis(50))),
            "without waiting again"
        );
        let mut panics = odd(|| panic!("defect"), Duration::from_mins(1));
        assert_eq!(ask(&mut panics), Err(gone()));
        assert_eq!(ask(&mut panics), Err(gone()));
        let mut fails = odd(|| Err(PolicyError::Failed("trap".to_owned())), Duration::from_mins(1));
        assert_eq!(ask(&mut fails), Err(PolicyError::Failed("trap".to_owned())));
        let lie = || Ok(Decision::new(crate::Action::Machines(vec!["ssh://x".into()]), ""));
        let mut lies = odd(lie, Duration::from_mins(1));
        assert!(matches!(ask(&mut lies), Err(PolicyError::Invalid(_))));
        let mut none = PolicyThread::new(
            Arc::new(|| Err(PolicyError::Failed("no plugin".to_owned()))),
            DEADLINE,
        );
        assert_eq!(ask(&mut none), Err(PolicyError::Unavailable("no plugin".to_owned())));
        assert_eq!(ask(&mut none), Err(PolicyError::Unavailable("no plugin".to_owned())));
    }
}
