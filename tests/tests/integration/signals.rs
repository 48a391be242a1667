//! The build hook is asked to end (SIGTERM), is killed, or its Nix is, at every stage of the
//! conversation: Nix never waits for an answer in vain, nothing that was started lives on, the slot
//! is free at once, nobody waits in the queue any more, no machine is blamed, and the record says
//! what became of the build.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use hookrun_builders::choice::health::Probe;
use hookrun_builders::history::{Outcome, Record, Selection};
use hookrun_builders::slots::sessions::{self, Activity, SessionState};
use hookrun_builders::slots::slot_files::SlotFiles;
use hookrun_builders::slots::slot_files::{Slot, Taken};
use hookrun_nix::wire;
use hookrun_tests::guests;
use hookrun_tests::lab::{Ran, answers, build_hook, conversation, hookrun_program};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The machine of all stages, with one slot.
const MACHINE: &str = "ssh://m";
const ACCEPT: &str = "# accept";
const DECLINE: &str = "# decline";
const NEVER: &str = "# decline-permanently";

/// Each answer waits for what the stock hook does.
const CONNECT_FIRST: &str = "[builders]\nearly-accept = false\n";

// Nix's own hook. What it starts, as it does ssh, outlives it; both are known by their files.
const REFUSES: &str = r#"printf '%s\n' '@nix {"action":"msg","level":0,"msg":"cannot build on \u0027ssh://m\u0027: error: refused"}' '# decline' >&2"#;
const CONNECTS: &str =
    "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo $$ > $here/stock; wait";
const BUILDS: &str = "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo '# accept' >&2; echo m >&2; \
                      cat > /dev/null; echo $$ > $here/stock; wait";
const GOOD: &str = "echo '# accept' >&2; echo m >&2; cat > /dev/null";

/// How the end comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interruption {
    /// The hook is asked to end.
    Asked,
    /// The hook is killed.
    Killed,
    /// Nix is killed, and the kernel kills the hook, as Nix has asked it to (`PR_SET_PDEATHSIG`).
    NixKilled,
    /// Nix closes its ends of all pipes, and that is all that can be seen of it.
    NixGone,
}

/// How far Nix has spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Nothing,
    HalfOfSettings,
    Settings,
    HalfOfQuestion,
    Question,
    QuestionAndHalf,
    HalfOfInputs,
    Inputs,
}

impl Progress {
    fn bytes(self) -> Vec<u8> {
        let (bytes, ends) = conversation(&format!("{MACHINE} - - 1"), 2);
        let [settings, question, second] = ends[..] else { unreachable!() };
        let upto = |count: usize| bytes.iter().copied().take(count).collect::<Vec<u8>>();
        let with = |lists: &[&str]| {
            let mut bytes = upto(question);
            for path in lists {
                wire::write_list(&mut bytes, &[*path]).unwrap();
            }
            bytes
        };
        let (input, output) = ("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x", "out");
        match self {
            Self::Nothing => Vec::new(),
            Self::HalfOfSettings => upto(settings / 2),
            Self::Settings => upto(settings),
            Self::HalfOfQuestion => upto(settings.midpoint(question)),
            Self::Question => upto(question),
            Self::QuestionAndHalf => upto(question.midpoint(second)),
            Self::HalfOfInputs => with(&[input]),
            Self::Inputs => with(&[input, output]),
        }
    }
}

/// A moment of the conversation, and what stands then.
struct Stage {
    name: &'static str,
    spoken: Progress,
    config: String,
    stock_hook: &'static str,
    /// Another build has the slot.
    occupied: bool,
    /// The directives that were given.
    said: &'static [&'static str],
    /// Whether the moment has come.
    reached: fn(&Session) -> bool,
}

impl Stage {
    fn of(name: &'static str, spoken: Progress) -> Self {
        let config = CONNECT_FIRST.to_owned();
        Self {
            name,
            spoken,
            config,
            stock_hook: REFUSES,
            occupied: false,
            said: &[],
            reached: |_| true,
        }
    }

    /// Every one.
    fn all() -> Vec<Self> {
        let hangs = guests::guest_for_all("faulty").unwrap().display().to_string();
        let connecting = |session: &Session| session.process("stock").is_some();
        vec![
            Self::of("before the settings", Progress::Nothing),
            Self::of("between settings", Progress::HalfOfSettings),
            Self::of("before the first question", Progress::Settings),
            Self::of("in the middle of a question", Progress::HalfOfQuestion),
            Self { said: &[DECLINE], ..Self::of("after an answer", Progress::Question) },
            Self {
                said: &[DECLINE],
                ..Self::of("in the middle of the second question", Progress::QuestionAndHalf)
            },
            Self {
                config: format!(
                    "[plugins.policy]\nsource = \"{hangs}\"\nhooks = [\"builder-selection\"]\nconfig = {{ fault = \"loop\" }}\n"
                ),
                reached: |session| !children(session.hook).is_empty(),
                ..Self::of("while the policy is asked", Progress::Question)
            },
            Self {
                stock_hook: CONNECTS,
                reached: connecting,
                ..Self::of("while the stock hook connects, before the answer", Progress::Question)
            },
            Self {
                said: &[ACCEPT],
                config: String::new(),
                ..Self::of("before the inputs", Progress::Question)
            },
            Self {
                said: &[ACCEPT],
                config: String::new(),
                ..Self::of("between inputs and outputs", Progress::HalfOfInputs)
            },
            Self {
                said: &[ACCEPT],
                config: String::new(),
                occupied: true,
                reached: |session| {
                    session
                        .sessions()
                        .iter()
                        .any(|live| matches!(live.activity, Activity::Waiting(_)))
                },
                ..Self::of("while it waits for a slot", Progress::Inputs)
            },
            Self {
                said: &[ACCEPT],
                config: String::new(),
                stock_hook: CONNECTS,
                reached: connecting,
                ..Self::of("while the stock hook connects, after the answer", Progress::Inputs)
            },
            Self {
                said: &[ACCEPT],
                stock_hook: BUILDS,
                reached: connecting,
                ..Self::of("while it builds", Progress::Inputs)
            },
        ]
    }

    /// Returns whether hookrun knows of a build.
    fn is_delegated(&self) -> bool {
        self.spoken == Progress::Inputs
    }
}

/// A hook, its Nix, and where they are.
struct Session {
    directory: tempfile::TempDir,
    nix: Child,
    hook: Pid,
    /// None: Nix has closed it.
    input: Option<ChildStdin>,
    replies: Option<ChildStderr>,
    heard: String,
    slot: Option<Slot>,
}

impl Session {
    /// Goes up to this stage.
    fn reach(stage: &Stage) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hook = build_hook(directory.path(), stage.stock_hook);
        std::fs::write(directory.path().join("hookrun.toml"), &stage.config).unwrap();
        let variables: Vec<_> =
            hook.get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
        if stage.config.contains("[plugins") {
            let mut compile = Command::new(hookrun_program());
            Ran::of(compile.arg("compile").env_clear().envs(variables.iter().copied()))
                .expect_success();
        }
        let slot = stage.occupied.then(|| slot_of(&directory));
        let mut nix = Command::new("/bin/sh");
        nix.args(["-c", "setpriv --pdeathsig KILL \"$@\"; exit $?", "nix"])
            .arg(hook.get_program())
            .args(hook.get_args());
        nix.env_clear()
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut nix = nix.process_group(0).spawn().unwrap();
        let (mut input, replies) = (nix.stdin.take().unwrap(), nix.stderr.take().unwrap());
        // Nix goes on to see what else there is while the hook says nothing.
        rustix::fs::fcntl_setfl(&replies, rustix::fs::OFlags::NONBLOCK).unwrap();
        let shell = Pid::from_child(&nix);
        let hook =
            until("the hook runs", || children(shell).into_iter().find(|pid| minds_signals(*pid)));
        input.write_all(&stage.spoken.bytes()).unwrap();
        let mut session = Self {
            directory,
            nix,
            hook,
            input: Some(input),
            replies: Some(replies),
            heard: String::new(),
            slot,
        };
        until(stage.name, || {
            session.listen();
            (session.directives() == stage.said && (stage.reached)(&session)).then_some(())
        });
        session
    }

    fn meet(&mut self, interruption: Interruption) {
        match interruption {
            Interruption::Asked => kill_process(self.hook, Signal::TERM).unwrap(),
            Interruption::Killed => kill_process(self.hook, Signal::KILL).unwrap(),
            Interruption::NixKilled => self.nix.kill().unwrap(),
            Interruption::NixGone => {
                self.listen();
                (self.input, self.replies) = (None, None);
            }
        }
        until("the hook ends", || is_gone(self.hook).then_some(()));
    }

    /// Reads what has been said.
    fn listen(&mut self) {
        let mut bytes = Vec::new();
        if let Some(replies) = &mut self.replies {
            // Ends with `WouldBlock`, or with the stream.
            let _all = replies.read_to_end(&mut bytes);
        }
        self.heard.push_str(&String::from_utf8_lossy(&bytes));
    }

    fn directives(&self) -> Vec<&str> {
        // The last line may be on its way.
        let whole = self.heard.rfind('\n').map_or("", |end| &self.heard[..end]);
        whole.lines().filter(|line| line.starts_with("# ")).collect()
    }

    /// A process that wrote its number there.
    fn process(&self, file: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.directory.path().join(file)).ok()?;
        Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?)
    }

    fn sessions(&self) -> Vec<SessionState> {
        sessions::live(&sessions::directory(&self.builders()))
    }

    fn builders(&self) -> PathBuf {
        self.directory.path().join("state/builders")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What a killed hook has left, as Nix kills it.
        let _ = kill_process_group(Pid::from_child(&self.nix), Signal::KILL);
        let _ = self.nix.wait();
    }
}

/// The only slot.
#[track_caller]
fn slot_of(directory: &tempfile::TempDir) -> Slot {
    let files = SlotFiles::below(&directory.path().join("nix-state"));
    // Another test of this process may just be starting a program, which has our files open for a
    // moment.
    until("the slot is free", || match files.take(MACHINE, 1) {
        Taken::Slot(slot) => Some(slot),
        Taken::Full | Taken::Unknown => None,
    })
}

/// Waits for it.
#[track_caller]
fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let texts: Vec<String> = texts.collect();
    texts
        .iter()
        .flat_map(|text| text.split_whitespace())
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// SIGTERM, 15, in the masks of `/proc/PID/status`.
const TERM: u64 = 1 << (15 - 1);

/// Returns whether it is the hook and has installed its signal handlers.
fn minds_signals(pid: Pid) -> bool {
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    if program.ok().and_then(|program| Some(program.file_name()? != "hookrun")) != Some(false) {
        return false;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
        .unwrap_or_default();
    let blocked = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigBlk:")?.trim(), 16).ok());
    blocked.is_some_and(|blocked| blocked & TERM != 0)
}

/// It may still be waited for; but none of its threads is there any more.
fn is_gone(pid: Pid) -> bool {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read_to_string(format!("{process}/stat"));
    let ended = |text: String| {
        text.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']))
    };
    stat.map_or(true, ended)
        && std::fs::read_dir(format!("{process}/task")).map_or(0, Iterator::count) <= 1
}

/// Every stage meets its end in this way.
fn at_every_stage(interruption: Interruption) {
    // A Nix that is gone without the kernel killing the hook is noticed where the hook reads, waits
    // or speaks.
    let stages = Stage::all()
        .into_iter()
        .filter(|stage| interruption != Interruption::NixGone || stage.stock_hook == REFUSES);
    for stage in stages {
        let at = format!("{interruption:?} {}", stage.name);
        let mut session = Session::reach(&stage);
        session.meet(interruption);
        let code = matches!(interruption, Interruption::Asked | Interruption::NixGone)
            .then(|| session.nix.wait().unwrap().code());

        // Nix gets at most one answer to each question, and never waits for one.
        session.listen();
        let mut said = stage.said.to_vec();
        if interruption == Interruption::Asked && !said.contains(&ACCEPT) {
            said.push(NEVER);
        }
        assert_eq!(session.directives(), said, "{at}: {}", session.heard);
        match (interruption, code) {
            (Interruption::Asked, code) => assert_eq!(code, Some(Some(1)), "{at}"),
            (Interruption::NixGone, code) => {
                assert_eq!(code, Some(Some(i32::from(stage.said == [ACCEPT]))), "{at}");
            }
            (Interruption::Killed | Interruption::NixKilled, _) => {}
        }

        // Nothing lives on. (What the stock hook has started as ssh ends with its streams, if the
        // hook could not end it.)
        for file in ["stock", "ssh"] {
            if let Some(pid) = session.process(file)
                && (file == "stock" || interruption == Interruption::Asked)
            {
                until(&format!("{at}: {file} ends"), || is_gone(pid).then_some(()));
            }
        }

        // Nothing is held.
        assert_eq!(session.sessions(), [], "{at}");
        session.slot = None;
        drop(slot_of(&session.directory));
        assert!(Probe::take(&session.builders(), MACHINE).is_some(), "{at}");

        // The record says what it was, and nothing against the machine. (Only a Nix that has ended
        // shows that nobody will say more.)
        if interruption == Interruption::Killed {
            session.nix.wait().unwrap();
        }
        let record = Record::read(&session.builders()).unwrap();
        let builds =
            record.as_ref().map_or(Vec::new(), |record| record.builds(Selection::Last(9)).unwrap());
        let outcomes: Vec<_> = builds.iter().map(|build| build.outcome).collect();
        let expected = if stage.is_delegated() { &[Some(Outcome::Abandoned)][..] } else { &[] };
        assert_eq!(outcomes, expected, "{at}: {builds:?}");
        let machines = record.map_or(BTreeMap::new(), |record| record.machines().unwrap());
        // Before the second question the machine has refused.
        let failures = u32::from(stage.said == [DECLINE]);
        assert_eq!(
            machines.get(MACHINE).map_or(0, |machine| machine.failures),
            failures,
            "{at}: {machines:?}"
        );

        // The next one goes on as if nothing had been.
        let mut next = build_hook(session.directory.path(), GOOD);
        std::fs::write(session.directory.path().join("hookrun.toml"), "").unwrap();
        let next = answers(&mut next, &Progress::Inputs.bytes());
        assert_eq!(
            (next.directives, next.code),
            (vec![ACCEPT.to_owned()], Some(0)),
            "{at}: {:?}",
            next.messages
        );
    }
}

#[test]
fn asked_to_end_at_every_stage() {
    at_every_stage(Interruption::Asked);
}

#[test]
fn killed_at_every_stage() {
    at_every_stage(Interruption::Killed);
}

#[test]
fn nix_killed_at_every_stage() {
    at_every_stage(Interruption::NixKilled);
}

#[test]
fn nix_closes_its_pipes_at_every_stage_without_a_stock_hook() {
    at_every_stage(Interruption::NixGone);
}

/// A Nix that does not read any more, with its pipe full, cannot keep the hook from ending what it
/// has started.
#[test]
fn asked_to_end_while_nix_does_not_read() {
    const FLOODS: &str = "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo '# accept' >&2; echo m >&2; \
                          cat > /dev/null; echo $$ > $here/stock; while :; do echo a line of the log; done >&2";
    let stage = Stage {
        said: &[ACCEPT],
        stock_hook: FLOODS,
        reached: |session| session.process("stock").is_some(),
        ..Stage::of("while it floods", Progress::Inputs)
    };
    let mut session = Session::reach(&stage);
    let replies = session.replies.take().unwrap();
    // Nothing is read, and nothing more can be written.
    until("the pipe is full", || {
        (rustix::io::ioctl_fionread(&replies).unwrap() > 60_000).then_some(())
    });
    session.meet(Interruption::Asked);
    for file in ["stock", "ssh"] {
        let pid = session.process(file).unwrap();
        until(file, || is_gone(pid).then_some(()));
    }
    let builds =
        Record::read(&session.builders()).unwrap().unwrap().builds(Selection::Last(9)).unwrap();
    assert!(
        matches!(&builds[..], [build] if build.outcome == Some(Outcome::Abandoned)),
        "{builds:?}"
    );
}
