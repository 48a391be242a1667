//! The sample events of `hookrun test`: one build, one difference, and several questions for a
//! policy.

use super::Question;
use hookrun_builders::{Candidate, LocalMachine, Machine};
use hookrun_capability::nix_store::sample::{STORE_DIR, Sample};
use hookrun_nix::caller::Caller;
use hookrun_nix::event::{Diff, Event, FORMAT, HookEvent, HookKind, NixDirs, Origin, PostBuild};
use hookrun_nix::evidence::{Difference, Evidence};

/// The time of all samples, 2025-01-01T12:00:00Z. It is fixed, so that two runs of a test have the
/// same output.
pub(super) const TIME_MS: u64 = 1_735_732_800_000;
const ID: &str = "01941fd6-4c00-7000-8000-000000000001";
const HOST: &str = "builder.example.org";

/// Returns the sample event of a hook that uses the spool.
pub(super) fn event(hook: HookKind) -> Option<Event> {
    let (drv_path, outputs) = Sample::built();
    let hook = match hook {
        HookKind::PostBuild => HookEvent::PostBuild(PostBuild { drv_path, outputs }),
        HookKind::Diff => {
            let output = outputs.into_iter().find(|output| output.name == "out")?;
            HookEvent::Diff(Diff {
                drv_path,
                previous: output.path.clone(),
                current: format!("{}.check", output.path),
                output,
                evidence: evidence(),
            })
        }
        HookKind::BuilderSelection => return None,
    };
    let nix = NixDirs::new(STORE_DIR, "/nix/var/nix", "/etc/nix");
    Some(Event {
        format: FORMAT,
        id: ID.to_owned(),
        time_ms: TIME_MS,
        host: HOST.to_owned(),
        nix,
        origin: Origin::Hook,
        caller: Some(caller()),
        plugins: Vec::new(),
        seen_valid: true,
        hook,
    })
}

fn caller() -> Caller {
    Caller {
        user: Some("ann".to_owned()),
        command: Some("nix-build --check -A greet".to_owned()),
        nix: Some("2.28.3".to_owned()),
    }
}

/// Returns every kind of difference, with one path that needs escaping.
fn evidence() -> Evidence {
    let difference = |path: &str, kind: &str, previous: &str, current: &str, offset| Difference {
        path: path.to_owned(),
        kind: kind.to_owned(),
        previous: previous.to_owned(),
        current: current.to_owned(),
        offset,
        details: Vec::new(),
    };
    Evidence {
        differences: vec![
            difference(
                "bin/greet",
                "content",
                "\"built on Jan 1 2025 11:58:02\\n\"",
                "\"built on Jan 1 2025 12:00:00\\n\"",
                Some(5128),
            ),
            difference("bin/greet-config", "mode", "0444", "0555", None),
            difference("lib/cache.pyc", "size", "4096", "4112", Some(16)),
            difference("lib/libgreet.so", "link-target", "libgreet.so.1", "libgreet.so.2", None),
            difference("share/<b>quoted & odd</b>", "only-in-current", "", "regular", None),
            difference("share/locale", "type", "directory", "symlink", None),
        ],
        incomplete: None,
        compared_files: 212,
        compared_bytes: 3_141_592,
    }
}

/// Returns the questions for a policy.
pub(super) fn questions() -> Vec<Question> {
    let candidate = |name: &str, features: &[&str]| Candidate {
        drv_path: format!("{STORE_DIR}/2c3k0d1bfkvzvmr9b4xv0yqsxl1a6z4w-{name}.drv"),
        name: name.to_owned(),
        system: "x86_64-linux".to_owned(),
        required_features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        ..Candidate::default()
    };
    let machine = |uri: &str, slots, load, speed_factor, healthy| Machine {
        uri: uri.into(),
        slots,
        load,
        speed_factor,
        healthy,
        ..Machine::default()
    };
    let local = |able, willing| LocalMachine { able, willing, slots: 4, ..LocalMachine::default() };
    vec![
        Question {
            what: "a slow and a fast machine, both idle",
            candidate: candidate("greet-2.12", &[]),
            machines: vec![
                machine("ssh://slow", 4, 0, 1.0, true),
                machine("ssh://fast", 8, 0, 4.0, true),
            ],
            local: local(true, true),
        },
        Question {
            what: "the fast machine is full",
            candidate: candidate("greet-2.12", &[]),
            machines: vec![
                machine("ssh://slow", 4, 1, 1.0, true),
                machine("ssh://fast", 8, 8, 4.0, true),
            ],
            local: local(true, false),
        },
        Question {
            what: "the only machine has failed recently",
            candidate: candidate("linux-6.12", &["big-parallel"]),
            machines: vec![machine("ssh://fast", 8, 0, 4.0, false)],
            local: local(true, true),
        },
        Question {
            what: "every machine is full and this one cannot build it",
            candidate: candidate("greet-2.12", &["kvm"]),
            machines: vec![machine("ssh://fast", 8, 8, 4.0, true)],
            local: local(false, false),
        },
    ]
}
