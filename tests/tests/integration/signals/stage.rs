//! The stages of a conversation between Nix and the build hook.

use hookrun_builders::slots::sessions::Activity;
use hookrun_nix::wire;
use hookrun_tests::lab::{ConfigFile, PluginTable, conversation, toml};

use super::conversation::{Conversation, children};

/// The machine of all stages, which has one slot.
pub(super) const MACHINE: &str = "ssh://m";
pub(super) const ACCEPT: &str = "# accept";
pub(super) const DECLINE: &str = "# decline";
pub(super) const NEVER: &str = "# decline-permanently";

/// Each answer depends on the stock hook.
fn connect_first() -> ConfigFile {
    ConfigFile::default().builders("early-accept", false)
}

// Scripts in the place of the stock hook. Its child process, like a real ssh, outlives it. Both
// write their ids into files.
pub(super) const REFUSES: &str = r#"printf '%s\n' '@nix {"action":"msg","level":0,"msg":"cannot build on \u0027ssh://m\u0027: error: refused"}' '# decline' >&2"#;
const CONNECTS: &str =
    "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo $$ > $here/stock; wait";
const BUILDS: &str = "here=${0%/nix}; sleep 1000 <&- >&- 2>&- & echo $! > $here/ssh; echo '# accept' >&2; echo m >&2; \
                      cat > /dev/null; echo $$ > $here/stock; wait";
pub(super) const GOOD: &str = "echo '# accept' >&2; echo m >&2; cat > /dev/null";

/// How much Nix has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
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
    pub(super) fn bytes(self) -> Vec<u8> {
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

/// A moment of the conversation.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) sent: Progress,
    /// The configuration.
    pub(super) file: ConfigFile,
    pub(super) stock_hook: &'static str,
    /// A policy has to be compiled first.
    pub(super) has_policy: bool,
    /// Another build has the slot.
    pub(super) occupied: bool,
    /// The directives that the hook has answered.
    pub(super) said: &'static [&'static str],
    /// Returns whether the stage is reached.
    pub(super) reached: fn(&Conversation) -> bool,
}

impl Stage {
    pub(super) fn of(name: &'static str, sent: Progress) -> Self {
        Self {
            name,
            sent,
            file: connect_first(),
            stock_hook: REFUSES,
            has_policy: false,
            occupied: false,
            said: &[],
            reached: |_| true,
        }
    }

    /// Returns all stages.
    pub(super) fn all() -> Vec<Self> {
        let loops = PluginTable::guest_for_all("faulty")
            .hooks(["builder-selection"])
            .config(toml! { fault = "loop" });
        let connecting = |conversation: &Conversation| conversation.process("stock").is_some();
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
                file: ConfigFile::default().plugin("policy", loops),
                has_policy: true,
                reached: |conversation| !children(conversation.hook).is_empty(),
                ..Self::of("while the policy is asked", Progress::Question)
            },
            Self {
                stock_hook: CONNECTS,
                reached: connecting,
                ..Self::of("while the stock hook connects, before the answer", Progress::Question)
            },
            Self {
                said: &[ACCEPT],
                file: ConfigFile::default(),
                ..Self::of("before the inputs", Progress::Question)
            },
            Self {
                said: &[ACCEPT],
                file: ConfigFile::default(),
                ..Self::of("between inputs and outputs", Progress::HalfOfInputs)
            },
            Self {
                said: &[ACCEPT],
                file: ConfigFile::default(),
                occupied: true,
                reached: |conversation| {
                    conversation
                        .sessions()
                        .iter()
                        .any(|live| matches!(live.activity, Activity::Waiting(_)))
                },
                ..Self::of("while it waits for a slot", Progress::Inputs)
            },
            Self {
                said: &[ACCEPT],
                file: ConfigFile::default(),
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
    pub(super) fn is_delegated(&self) -> bool {
        self.sent == Progress::Inputs
    }
}
