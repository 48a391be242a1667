use proptest::prelude::*;

use super::*;

/// A path of a test: its size and the numbers of its references.
type Made = (u64, Vec<usize>);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("/s/{number}")).collect()
}

fn references(made: &[Made]) -> Vec<Vec<String>> {
    let name = |number: &usize| format!("/s/{number}");
    made.iter().map(|(_, references)| references.iter().map(name).collect()).collect()
}

fn graph(made: &[Made]) -> Graph {
    let (names, references) = (names(made.len()), references(made));
    let paths: Vec<ToPush<'_>> = made
        .iter()
        .enumerate()
        .map(|(number, (nar_size, _))| ToPush {
            path: &names[number],
            nar_size: *nar_size,
            references: &references[number],
        })
        .collect();
    let (graph, others) = Graph::new(&paths, |_| false);
    assert!(others.is_empty(), "{others:?}");
    graph
}

fn look_up_all(graph: &mut Graph, found: Found) {
    while let Some(number) = graph.next_to_look_up() {
        assert!(graph.looked_up(number, found).is_empty());
    }
}

fn sent_in(graph: &mut Graph, lane: Lane) -> Vec<usize> {
    std::iter::from_fn(|| graph.next_to_send(lane)).collect()
}

#[test]
fn nars_are_sent_largest_first_in_two_lanes_without_waiting_for_references() {
    let mut graph =
        graph(&[(1, vec![3]), (SMALL_NAR, vec![0]), (SMALL_NAR + 1, vec![1]), (9 << 30, vec![])]);
    look_up_all(&mut graph, Found::Absent);
    assert_eq!(sent_in(&mut graph, Lane::Large), [3, 2]);
    assert_eq!(sent_in(&mut graph, Lane::Small), [1, 0]);
}

#[test]
fn a_narinfo_waits_for_those_of_its_references() {
    let mut graph = graph(&[(1, vec![0]), (1, vec![0]), (1, vec![0, 1])]);
    look_up_all(&mut graph, Found::Absent);
    sent_in(&mut graph, Lane::Small);
    graph.stored(2);
    graph.stored(1);
    assert_eq!(graph.next_to_publish(), None);
    graph.stored(0);
    assert_eq!(graph.next_to_publish(), Some(0), "a reference to itself does not count");
    assert_eq!(graph.next_to_publish(), None);
    graph.published(0);
    assert_eq!(graph.next_to_publish(), Some(1));
    graph.published(1);
    assert_eq!(graph.next_to_publish(), Some(2));
}

#[test]
fn a_present_narinfo_that_lacks_a_signature_is_written_without_a_nar() {
    let mut graph = graph(&[(1, vec![1]), (1, vec![])]);
    assert!(graph.looked_up(0, Found::Incomplete).is_empty());
    assert_eq!(graph.next_to_publish(), Some(0), "it is visible anyway");
    assert_eq!(graph.next_to_send(Lane::Small), None);
}

#[test]
fn a_failure_stops_the_referrers_that_are_absent_and_no_others() {
    // 0 <- 1 <- 2, 0 <- 3, and 4 stands alone.
    let made = [(1, vec![]), (1, vec![0]), (1, vec![1]), (1, vec![0]), (1, vec![])];
    let mut graph = graph(&made);
    for number in [0, 1, 2, 4] {
        graph.looked_up(number, Found::Absent);
    }
    let mut stopped = graph.failed(0);
    stopped.sort_unstable();
    assert_eq!(stopped, [1, 2]);
    assert!(graph.looked_up(3, Found::Present).is_empty(), "the cache has it");
    assert_eq!(sent_in(&mut graph, Lane::Small), [4]);
}

#[test]
fn a_reference_outside_of_the_push_must_be_in_the_cache_or_elsewhere() {
    let (names, references) =
        (names(2), vec![vec!["/s/other".to_owned(), "/s/9".to_owned()], vec!["/s/0".to_owned()]]);
    let path = |number: usize| ToPush {
        path: &names[number],
        nar_size: 1,
        references: &references[number],
    };
    let paths = [path(0), path(1)];
    let make = || Graph::new(&paths, |path| path == "/s/other");
    let (mut graph, others) = make();
    assert_eq!(others, ["/s/9"]);
    assert!(graph.looked_up(0, Found::Absent).is_empty());
    assert_eq!(graph.looked_up(2, Found::Absent), [0]);
    assert_eq!(graph.looked_up(1, Found::Absent), [1], "it needs what cannot be uploaded");
    assert_eq!(sent_in(&mut graph, Lane::Small), [0_usize; 0]);
    let (mut graph, _) = make();
    graph.looked_up(0, Found::Absent);
    graph.stored(0);
    assert_eq!(graph.next_to_publish(), None);
    graph.looked_up(2, Found::Present);
    assert_eq!(graph.next_to_publish(), Some(0));
}

/// One kind of work that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    LookUp,
    Send,
    Publish,
}

proptest! {
    /// For any graph, any order in which work ends, any paths that are present, and any failures:
    /// a narinfo is written only when its NAR is stored and the narinfos of its references are
    /// visible, and every path ends in one way.
    #[test]
    fn no_narinfo_is_visible_before_its_nar_and_its_references(
        edges in proptest::collection::vec((0_usize..20, 0_usize..20), 0..60),
        sizes in proptest::collection::vec(0_u64..2 * SMALL_NAR, 20),
        // A closed cache: what is present has its references present.
        present_below in 0_usize..20,
        failing in proptest::collection::vec(proptest::bool::weighted(0.15), 20),
        choices in proptest::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let mut made: Vec<Made> = sizes.iter().map(|size| (*size, Vec::new())).collect();
        for (from, to) in edges {
            // References only from larger to smaller numbers, or to itself.
            if to <= from && !made[from].1.contains(&to) {
                made[from].1.push(to);
            }
        }
        let mut graph = graph(&made);
        let (mut visible, mut stored) = ([false; 20], [false; 20]);
        // One that is stopped while its NAR is sent may also fail by itself.
        let mut failed = [false; 20];
        let mut under_way: Vec<(Work, usize)> = Vec::new();
        let mut choices = choices.into_iter().cycle();
        loop {
            under_way.extend(std::iter::from_fn(|| graph.next_to_look_up()).map(|n| (Work::LookUp, n)));
            for lane in [Lane::Small, Lane::Large] {
                let next = std::iter::from_fn(|| graph.next_to_send(lane)).map(|n| (Work::Send, n));
                under_way.extend(next);
            }
            under_way.extend(std::iter::from_fn(|| graph.next_to_publish()).map(|n| (Work::Publish, n)));
            if under_way.is_empty() {
                break;
            }
            let (work, number) = under_way.swap_remove(choices.next().unwrap().index(under_way.len()));
            if work == Work::Publish {
                prop_assert!(stored[number], "{number} has no NAR");
                for reference in &made[number].1 {
                    prop_assert!(*reference == number || visible[*reference], "{number} before {reference}");
                }
            }
            let mut stopped = Vec::new();
            match work {
                Work::LookUp if number < present_below => {
                    visible[number] = true;
                    stopped = graph.looked_up(number, Found::Present);
                }
                Work::LookUp => stopped = graph.looked_up(number, Found::Absent),
                _ if failing[number] => {
                    failed[number] = true;
                    stopped = graph.failed(number);
                }
                Work::Send => {
                    stored[number] = true;
                    graph.stored(number);
                }
                Work::Publish => {
                    visible[number] = true;
                    graph.published(number);
                }
            }
            for number in stopped {
                failed[number] = true;
            }
        }
        for number in 0..20 {
            prop_assert!(visible[number] != failed[number], "{number} is visible, or was not uploaded");
        }
    }
}
