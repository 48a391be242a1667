use proptest::prelude::*;

use super::*;

/// Compares two whole files from their beginning.
fn look(previous: &[u8], current: &[u8], most: usize) -> Contents {
    let at = previous.iter().zip(current).take_while(|(a, b)| a == b).count();
    super::look(Pieces { previous, current, start: 0, at, whole: true }, most)
}

fn shown(contents: &Contents) -> Vec<(Option<u64>, &str, &str)> {
    contents
        .excerpts
        .iter()
        .map(|one| (one.lines_before, one.previous.as_str(), one.current.as_str()))
        .collect()
}

#[test]
fn whole_lines_of_text_are_shown_with_their_number() {
    let found = look(b"header\npid 55794\nend\n", b"header\npid 55801\nend\n", 3);
    assert_eq!(shown(&found), [(Some(1), r#""pid 55794\n""#, r#""pid 55801\n""#)]);
    assert_eq!(found.excerpts[0].offset, 13);
    assert_eq!((found.places, found.lines, found.at_least), (1, Some(1), false));
}

#[test]
fn a_line_that_only_one_side_has_does_not_make_the_rest_differ() {
    let found = look(b"a\nb\nc\nd\n", b"a\nb\nnew\nc\nd\n", 3);
    assert_eq!(shown(&found), [(Some(2), "", r#""new\n""#)]);
    assert_eq!((found.places, found.lines), (1, Some(1)));
}

#[test]
fn several_places_are_counted_and_the_first_are_shown() {
    let text = |day: u32| {
        let lines = (0..5).map(|n| format!("built on day {day} by {n}\nsteady {n}\n"));
        lines.collect::<Vec<_>>().concat()
    };
    let found = look(text(1).as_bytes(), text(2).as_bytes(), 2);
    assert_eq!((found.places, found.lines, found.excerpts.len()), (5, Some(5), 2));
    assert_eq!(found.excerpts[1].lines_before, Some(2));
}

#[test]
fn the_same_lines_in_another_order_are_recognised() {
    assert!(look(b"a\nb\nc\nd\n", b"c\na\nd\nb\n", 3).reordered);
    assert!(!look(b"a\nb\nc\nd\n", b"c\na\nd\nd\n", 3).reordered);
    let cut = Pieces { previous: b"a\nb\n", current: b"b\na\n", start: 0, at: 0, whole: false };
    assert!(!super::look(cut, 3).reordered, "the rest was not examined");
}

#[test]
fn a_long_line_is_cut_between_words() {
    let line = |pid: &str| format!("{} pid {pid} {}\n", "word ".repeat(60), "more ".repeat(60));
    let found = look(line("55794").as_bytes(), line("55801").as_bytes(), 1);
    let (_, previous, _) = shown(&found)[0];
    assert!(
        previous.starts_with(r#"..."word "#) && previous.ends_with(r#" more"..."#),
        "{previous}"
    );
    assert!(previous.len() < 300 && previous.contains("pid 55794"), "{previous}");
}

#[test]
fn bytes_are_shown_in_rows_from_a_multiple_of_eight() {
    let mut previous: Vec<u8> = (0..=255).collect();
    let mut current = previous.clone();
    previous.extend(b"built Nov 27 2026");
    current.extend(b"built Nov 28 2026");
    let found = look(&previous, &current, 3);
    let one = &found.excerpts[0];
    assert_eq!((one.offset, one.from), (256 + 11, Some(248)));
    assert!(one.previous.starts_with("f8 f9") && one.previous.ends_with("36"), "{one:?}");
    assert_eq!((found.places, found.bytes, found.lines), (1, Some(1), None));
}

#[test]
fn bytes_of_another_length_are_not_counted() {
    let found = look(b"\0abc", b"\0abd!", 3);
    assert_eq!((found.bytes, found.at_least, found.excerpts.len()), (None, true, 1));
}

proptest! {
    /// Checks for any contents that the number and size of excerpts are limited, and that the first
    /// one is at or before the line of the first difference.
    #[test]
    fn what_is_shown_is_bounded(
        previous in proptest::collection::vec(any::<u8>(), 0..600),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        lines in any::<bool>(),
        most in 1_usize..4,
    ) {
        let fit = |byte: u8| if lines { b"ab\n \"\\"[usize::from(byte) % 6] } else { byte };
        let previous: Vec<u8> = previous.into_iter().map(fit).collect();
        let mut current = previous.clone();
        for (at, byte) in changes {
            if current.is_empty() || byte % 7 == 0 {
                current.push(fit(byte));
            } else {
                let at = at.index(current.len());
                current[at] = fit(byte);
            }
        }
        prop_assume!(previous != current);
        let found = look(&previous, &current, most);
        prop_assert!(!found.excerpts.is_empty() && found.excerpts.len() <= most);
        prop_assert!(found.places >= found.excerpts.len() as u64);
        for one in &found.excerpts {
            prop_assert!(one.previous.len() <= 1024 && one.current.len() <= 1024, "{:?}", one);
            prop_assert!(one.previous != one.current || one.from.is_some(), "{:?}", one);
        }
    }
}
