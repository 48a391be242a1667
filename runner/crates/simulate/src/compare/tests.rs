//! Tests of [`super`] with small traces whose results can be computed by hand, and of properties of
//! every generated trace.

use proptest::prelude::*;

use super::*;
use crate::generate::{Fleet, generate};
use crate::{chart, svg};
use hookrun_builders::choice::policy::Policy;
use hookrun_nix::selection::PolicyError;
use hookrun_nix::selection::{Action, Candidate, Decision, LocalMachine, Machine};

/// Names every machine, free ones first, in Nix's order, to measure the effect of the queue alone.
struct Eager;

impl Policy for Eager {
    fn select(
        &self,
        _: &Candidate,
        machines: &[Machine],
        _: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        let ranked = StockRule::default().ranked(machines);
        let free = ranked
            .iter()
            .filter_map(|index| machines.get(*index))
            .map(|machine| machine.uri.clone());
        let full = machines
            .iter()
            .filter(|machine| !machine.has_free_slot())
            .map(|machine| machine.uri.clone());
        Ok(Decision::new(Action::Machines(free.chain(full).collect()), "in Nix's order"))
    }
}

/// A policy that always fails.
struct Broken;

impl Policy for Broken {
    fn select(
        &self,
        _: &Candidate,
        _: &[Machine],
        _: &LocalMachine,
    ) -> Result<Decision, PolicyError> {
        Err(PolicyError::Failed("deliberate failure".to_owned()))
    }
}

fn trace(machines: &str, derivations: &[&str]) -> Trace {
    let text =
        format!("{{\"type\":\"trace\",\"version\":1}}\n{machines}\n{}", derivations.join("\n"));
    Trace::read(text.as_bytes()).unwrap()
}

/// Returns no resources besides slots.
fn nothing() -> Resources {
    Resources::default()
}

const ONE_SLOT: &str =
    r#"{"type":"machine","name":"m","slots":1,"speed_factor":2,"speed":2,"mb_per_s":10}"#;

#[test]
fn small_traces_have_the_computed_results() {
    // Two builds of 12 s at speed 2: the second one is postponed at 0 and asked again at 5, 10, ...
    let two = trace(
        ONE_SLOT,
        &[
            r#"{"type":"drv","id":0,"pname":"a","work_s":12}"#,
            r#"{"type":"drv","id":1,"pname":"b","work_s":12}"#,
        ],
    );
    let compared = compare(
        std::slice::from_ref(&two),
        StockRule::default(),
        &nothing(),
        &[("queue".to_owned(), &Eager)],
    );
    let makespans: Vec<f64> = compared.rules.iter().map(|rule| rule.makespan_s).collect();
    assert_eq!(
        makespans,
        [16.0, 12.0],
        "6 s, idle until 10 s, and 6 s; with the queue there is no idle time"
    );
    assert!((compared.bound.makespan_s - 12.0).abs() < 1e-9);

    // Transfers: missing inputs, and the outputs back. Outputs built on the machine are not
    // transferred again.
    let other =
        r#"{"type":"machine","name":"n","slots":1,"speed_factor":1,"speed":1,"mb_per_s":10}"#;
    let chain = trace(
        &format!("{ONE_SLOT}\n{other}"),
        &[
            r#"{"type":"drv","id":0,"pname":"a","work_s":2,"out_mb":100}"#,
            r#"{"type":"drv","id":1,"pname":"b","work_s":2,"deps":[0]}"#,
            r#"{"type":"drv","id":2,"pname":"c","work_s":100,"deps":[0]}"#,
        ],
    );
    let played = play(&chain, &nothing(), &mut Stock::default());
    // a: 1 s + 10 s back = 11 s on m. b: on m, which has its input, 1 s. c: on n: 10 s + 100 s.
    assert_eq!(
        (played.makespan, played.transfer, played.builds.clone()),
        (121.0, 20.0, vec![2, 1])
    );
}

#[test]
fn derivations_that_fit_nowhere_are_counted() {
    let odd = trace(
        ONE_SLOT,
        &[
            r#"{"type":"drv","id":0,"pname":"a","work_s":2,"features":["kvm"]}"#,
            r#"{"type":"drv","id":1,"pname":"b","work_s":2,"deps":[0]}"#,
            r#"{"type":"drv","id":2,"pname":"c","work_s":2,"start_s":50}"#,
        ],
    );
    let compared =
        compare(&[odd], StockRule::default(), &nothing(), &[("queue".to_owned(), &Eager)]);
    let ended: Vec<(f64, usize)> =
        compared.rules.iter().map(|rule| (rule.makespan_s, rule.never)).collect();
    assert_eq!(ended, [(51.0, 2), (51.0, 2)]);
}

#[test]
fn a_policy_that_fails_is_reported_and_replaced() {
    let compared = compare(
        &[generate(1, 50, Fleet::Four)],
        StockRule::default(),
        &nothing(),
        &[("broken".to_owned(), &Broken)],
    );
    assert_eq!(compared.rules[1].problem.as_deref(), Some("deliberate failure"));
    assert_eq!(compared.rules[1].never, 0);
}

#[test]
fn commands_share_slots() {
    // Two commands: one with many builds first, one with two. The command with fewer builds is
    // next.
    let drv = |id: usize, command: &str| {
        format!(r#"{{"type":"drv","id":{id},"pname":"p{id}","work_s":20,"command":"{command}"}}"#)
    };
    let lines: Vec<String> =
        (0..8).map(|id| drv(id, "first")).chain((8..10).map(|id| drv(id, "second"))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let played = play(&trace(ONE_SLOT, &lines), &nothing(), &mut Queued::new(&Eager));
    let (mut from, last) = (played.spans.clone(), played.makespan);
    from.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!((from.len(), last), (10, 100.0), "no slot is idle");
    // The waits are in the order of starting: the second command's two builds are the second and
    // the fourth.
    assert_eq!(played.waits.len(), 10);
}

/// Returns four slots and two GPUs on `m`, and one licence for all machines.
fn limits() -> Resources {
    let text = "
        [builders.machine-resources.\"ssh://m\"]
        gpu = 2
        [builders.feature-resources.cuda]
        gpu = 1
        [builders.feature-resources.large]
        gpu = 2
        [builders.feature-resources.matlab]
        licence = 1
        [builders.shared-resources]
        licence = 1";
    hookrun_config::Config::parse(std::path::Path::new("/etc/hookrun.toml"), text)
        .unwrap()
        .builders
        .resources
}

const FOUR_SLOTS: &str = r#"{"type":"machine","name":"ssh://m","slots":4,"speed_factor":1,"speed":1,"features":["cuda","large","matlab"]}
{"type":"machine","name":"ssh://n","slots":4,"speed_factor":1,"speed":1,"features":["matlab"]}"#;

/// Returns derivations that take `seconds` each and require one feature.
fn requiring(features: &[(&str, u32)]) -> Trace {
    let line = |(id, (feature, seconds)): (usize, &(&str, u32))| {
        format!(
            r#"{{"type":"drv","id":{id},"pname":"p","work_s":{seconds},"features":["{feature}"]}}"#
        )
    };
    let lines: Vec<String> = features.iter().enumerate().map(line).collect();
    trace(FOUR_SLOTS, &lines.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn resources_besides_slots_are_counted() {
    let makespan = |features: &[(&str, u32)]| {
        play(&requiring(features), &limits(), &mut Queued::new(&Eager)).makespan
    };
    let makespans = vec![
        makespan(&[("cuda", 10); 4]),
        makespan(&[("matlab", 10); 3]),
        makespan(&[("cuda", 10), ("cuda", 10), ("matlab", 10)]),
    ];
    assert_eq!(
        makespans,
        [20.0, 30.0, 10.0],
        "two at a time; one at a time on any machine; no common resource"
    );
    let compared = compare(
        &[requiring(&[("cuda", 10); 4])],
        StockRule::default(),
        &limits(),
        &[("queue".to_owned(), &Eager)],
    );
    let makespans: Vec<f64> = compared.rules.iter().map(|rule| rule.makespan_s).collect();
    assert_eq!(makespans, [10.0, 20.0], "Nix does not know resources");
    let mut small = limits();
    small.machines.get_mut("ssh://m").unwrap().0.insert("gpu".to_owned(), 1);
    assert_eq!(
        play(&requiring(&[("large", 10)]), &small, &mut Queued::new(&Eager)).never,
        1,
        "no machine has this amount"
    );
}

#[test]
fn a_large_build_is_not_overtaken_for_ever() {
    // Two small builds run, a large one waits, and a small one arrives whenever one has ended.
    let mut features = vec![("cuda", 100), ("cuda", 130), ("large", 1000)];
    features.extend([("cuda", 150); 8]);
    let played = play(&requiring(&features), &limits(), &mut Queued::new(&Eager));
    // Small builds begin at 100, 130, 250 and 280 s. From 300 s on free resources are kept, and the
    // last small build ends at 430 s.
    assert!(played.spans.contains(&(430.0, 1430.0)), "{:?}", played.spans);
    assert_eq!(
        played.spans.iter().filter(|(from, _)| *from >= 1430.0).count(),
        4,
        "the others run after it"
    );
}

#[test]
fn a_comparison_has_figures_and_a_chart() {
    let traces: Vec<Trace> = (1..=3).map(|seed| generate(seed, 60, Fleet::Four)).collect();
    let compared =
        compare(&traces, StockRule::default(), &nothing(), &[("<queue & co>".to_owned(), &Eager)]);
    let text =
        [chart::table(&compared), chart::busy_over_time(&compared), chart::machines(&compared)]
            .map(|rows| rows.into_iter().map(|row| row.join(" | ")).collect::<Vec<_>>().join("\n"));
    insta::assert_snapshot!(text.join("\n"));
    let picture = svg::picture(&compared, "60 derivations on 4 machines");
    assert!(
        picture.contains("&lt;queue &amp; co&gt;")
            && picture.ends_with("</svg>\n")
            && !picture.contains("NaN")
    );
}

#[test]
fn quantiles_are_nearest_ranks() {
    let values: Vec<f64> = (1..=20).map(f64::from).collect();
    assert_eq!((quantile(&values, 50), quantile(&values, 90)), (10.5, 18.0));
    assert_eq!((quantile(&[3.0], 50), quantile(&[3.0], 90)), (3.0, 3.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Checks that no rule beats the bound, everything is built once, no machine has more builds
    /// than slots, and no dependency is late.
    #[test]
    fn every_schedule_is_valid(seed: u64, nodes in 1usize..200, fifty: bool) {
        let trace = generate(seed, nodes, if fifty { Fleet::Fifty } else { Fleet::Four });
        for played in [play(&trace, &nothing(), &mut Stock::default()), play(&trace, &nothing(), &mut Queued::new(&Eager))] {
            prop_assert_eq!((played.never, played.waits.len()), (0, nodes));
            prop_assert!(played.makespan >= lower_bound(&trace) - 1e-6);
            prop_assert!(played.waits.iter().all(|wait| *wait >= 0.0));
            let mut edges: Vec<(f64, i32)> = played.spans.iter().flat_map(|(from, to)| [(*from, 1), (*to, -1)]).collect();
            edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let (mut held, mut most) = (0, 0);
            for (_, change) in edges {
                held += change;
                most = most.max(held);
            }
            prop_assert!(f64::from(most) <= slots(&trace));
        }
    }
}
