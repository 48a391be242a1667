use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;
use rustix::fs::Mode;

use super::entry::NODE;
use super::*;

/// A tree in memory.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    File { contents: Vec<u8>, executable: bool },
    Link(String),
    Directory(BTreeMap<Vec<u8>, Node>),
}

fn write(node: &Node, path: &Path) {
    match node {
        Node::File { contents, executable } => {
            std::fs::write(path, contents).unwrap();
            let mode = if *executable { 0o555 } else { 0o444 };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Node::Link(target) => symlink(target, path).unwrap(),
        Node::Directory(entries) => {
            std::fs::create_dir(path).unwrap();
            for (name, node) in entries {
                write(node, &path.join(OsString::from_vec(name.clone())));
            }
        }
    }
}

fn found(left: &Node, right: &Node, bounds: Bounds) -> Evidence {
    let dir = tempfile::tempdir().unwrap();
    write(left, &dir.path().join("a"));
    write(right, &dir.path().join("b"));
    compare(&dir.path().join("a"), &dir.path().join("b"), bounds)
}

/// Returns limits without a time limit, so that the speed of the machine does not matter.
fn unbounded() -> Bounds {
    Bounds { time: Duration::from_hours(1), differences: usize::MAX, ..Bounds::default() }
}

/// Computes the differences by definition: the kinds at each path.
fn model(left: &Node, right: &Node, path: &Path, into: &mut Vec<(String, &'static str)>) {
    let mut add = |kind| into.push((path.to_string_lossy().into_owned(), kind));
    match (left, right) {
        (Node::File { contents: a, executable: x }, Node::File { contents: b, executable: y }) => {
            if a != b {
                add("content");
            }
            if x != y {
                add("mode");
            }
            if a.len() != b.len() {
                add("size");
            }
        }
        (Node::Link(a), Node::Link(b)) => {
            if a != b {
                add("link-target");
            }
        }
        (Node::Directory(a), Node::Directory(b)) => {
            let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = path.join(OsString::from_vec(name.clone()));
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => model(a, b, &path, into),
                    (Some(_), None) => {
                        into.push((path.to_string_lossy().into_owned(), "only-in-previous"));
                    }
                    _ => into.push((path.to_string_lossy().into_owned(), "only-in-current")),
                }
            }
        }
        _ => add("type"),
    }
}

fn tree() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (proptest::collection::vec(any::<u8>(), 0..4), any::<bool>())
            .prop_map(|(contents, executable)| Node::File { contents, executable }),
        "[ab/]{1,3}".prop_map(Node::Link),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let name = prop_oneof![
            Just(b"a".to_vec()),
            Just(b"a.b".to_vec()),
            Just(b"c".to_vec()),
            Just(vec![0xff, b'x'])
        ];
        proptest::collection::btree_map(name, inner, 0..4).prop_map(Node::Directory)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_trees_have_no_difference(tree in tree()) {
        let evidence = found(&tree, &tree, unbounded());
        prop_assert_eq!(evidence.differences, vec![]);
        prop_assert_eq!(evidence.incomplete, None);
    }

    #[test]
    fn differences_are_those_of_the_definition(left in tree(), right in tree()) {
        let evidence = found(&left, &right, unbounded());
        let mut expected = Vec::new();
        model(&left, &right, Path::new(""), &mut expected);
        expected.sort();
        let mut kinds: Vec<_> = evidence.differences.iter().map(|d| (d.path.clone(), d.kind.as_str())).collect();
        // Several places of one file count once.
        kinds.dedup();
        prop_assert_eq!(kinds, expected);
    }

    #[test]
    fn offset_is_that_of_the_first_differing_byte(mut bytes in proptest::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>()) {
        let left = Node::File { contents: bytes.clone(), executable: false };
        let at = at.index(bytes.len());
        bytes[at] ^= 1;
        let evidence = found(&left, &Node::File { contents: bytes, executable: false }, unbounded());
        prop_assert_eq!(evidence.differences.len(), 1);
        prop_assert_eq!(evidence.differences[0].offset, Some(at as u64));
    }
}

#[test]
fn link_targets_are_compared_as_bytes() {
    let evidence = found(&Node::Link("/".into()), &Node::Link("//".into()), unbounded());
    assert_eq!(evidence.differences.len(), 1, "{evidence:?}");
}

fn file(contents: &str) -> Node {
    Node::File { contents: contents.into(), executable: false }
}

fn details(difference: &Difference) -> Vec<(&str, &str)> {
    difference.details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn text_is_shown_by_lines_and_bytes_in_hexadecimal() {
    let evidence =
        found(&file("by a\nbuilt at 12:00\n"), &file("by a\nbuilt at 12:01\n"), unbounded());
    let d = &evidence.differences[0];
    assert_eq!(
        (d.offset, d.previous.as_str(), d.current.as_str()),
        (Some(18), r#""built at 12:00\n""#, r#""built at 12:01\n""#)
    );
    assert_eq!(details(d), [("line", "2"), ("differing-places", "1"), ("differing-lines", "1")]);
    let evidence = found(&file("\u{0}\u{1}"), &file("\u{0}\u{2}"), unbounded());
    let d = &evidence.differences[0];
    assert_eq!((d.previous.as_str(), d.current.as_str()), ("00 01", "00 02"));
    assert_eq!(details(d), [("from", "0"), ("differing-places", "1"), ("differing-bytes", "1")]);
}

#[test]
fn a_difference_far_into_a_file_has_its_line_and_offset() {
    let left = "a line\n".repeat(40_000) + "yes\n";
    let right = "a line\n".repeat(40_000) + "yon\n";
    let evidence = found(&file(&left), &file(&right), unbounded());
    let d = &evidence.differences[0];
    assert_eq!((d.offset, d.previous.as_str()), (Some(280_001), r#""yes\n""#));
    assert_eq!(details(d)[0], ("line", "40001"));
}

#[test]
fn several_places_of_one_file_are_several_differences_with_one_total() {
    let text =
        |n: u32| (0..9).map(|i| format!("{i} at {n}\nsame {i}\n")).collect::<Vec<_>>().concat();
    let evidence = found(&file(&text(1)), &file(&text(2)), unbounded());
    let kinds: Vec<_> = evidence.differences.iter().map(|d| (d.kind.as_str(), d.offset)).collect();
    assert_eq!(kinds, [("content", Some(5)), ("content", Some(19)), ("content", Some(33))]);
    assert!(details(&evidence.differences[0]).contains(&("differing-lines", "9")));
    assert_eq!(details(&evidence.differences[1]), [("line", "3")]);
}

#[test]
fn the_same_lines_in_another_order_are_recognised() {
    let evidence = found(&file("one\ntwo\nthree\n"), &file("two\nthree\none\n"), unbounded());
    assert!(details(&evidence.differences[0]).contains(&("order", "lines")));
}

#[test]
fn many_files_are_all_named_and_the_event_stays_small() {
    let tree = |text: &str| {
        let contents = format!("{text}\n").repeat(40);
        Node::Directory(
            (0..1500).map(|n| (format!("{n:05}").into_bytes(), file(&contents))).collect(),
        )
    };
    let evidence = found(
        &tree(&"one ".repeat(50)),
        &tree(&"two ".repeat(50)),
        Bounds { time: Duration::from_hours(1), ..Bounds::default() },
    );
    let mut paths: Vec<&str> = evidence.differences.iter().map(|d| d.path.as_str()).collect();
    paths.dedup();
    assert_eq!((paths.len(), evidence.incomplete), (1500, None));
    let json = serde_json::to_vec(&evidence.differences).unwrap();
    assert!(json.len() < 1 << 20, "{}", json.len());
    assert_eq!(evidence.differences.last().unwrap().previous, "", "only named");
}

#[test]
fn bounds_end_the_comparison_and_are_named() {
    let many =
        |text: &str| Node::Directory((b'a'..b'k').map(|name| (vec![name], file(text))).collect());
    let (left, right) = (many("one"), many("two"));
    let with = |bounds: Bounds| found(&left, &right, bounds);
    let few = with(Bounds { differences: 3, ..unbounded() });
    assert_eq!(few.differences.len(), 3);
    insta::assert_snapshot!(few.incomplete.unwrap(), @"the comparison reached its limit of 3 differences");
    insta::assert_snapshot!(with(Bounds { files: 4, ..unbounded() }).incomplete.unwrap(), @"the comparison reached its limit of 4 files");
    insta::assert_snapshot!(with(Bounds { bytes: 4, ..unbounded() }).incomplete.unwrap(), @"the comparison reached its limit of 4 bytes");
    insta::assert_snapshot!(with(Bounds { time: Duration::ZERO, ..unbounded() }).incomplete.unwrap(), @"the comparison reached its time limit of 0s");
}

#[test]
fn a_missing_tree_makes_the_evidence_incomplete() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    let evidence = compare(&a, &b, unbounded());
    assert!(evidence.differences.is_empty());
    assert_eq!(
        evidence.incomplete.unwrap(),
        format!("{} cannot be read (No such file or directory (os error 2))", a.display())
    );
}

/// Creates a directory with this many names, which are all links to one file.
fn many_names(path: &Path, count: usize) {
    std::fs::create_dir(path).unwrap();
    std::fs::write(path.join("0"), "same").unwrap();
    for number in 1..count {
        std::fs::hard_link(path.join("0"), path.join(number.to_string())).unwrap();
    }
}

#[test]
fn more_names_than_are_held_make_it_incomplete_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (left, right) = (dir.path().join("a"), dir.path().join("b"));
    many_names(&left, 20_000);
    many_names(&right, 20_000);
    std::fs::remove_file(right.join("17")).unwrap();
    let directory = |path: &Path| open_directory(Location { directory: CWD, name: path }).unwrap();
    let listed = list(&directory(&left), 1000 * (NODE + 5), None).unwrap();
    assert!(!listed.is_whole && listed.names.len() < 2000, "{}", listed.names.len());
    let evidence = compare(&left, &right, unbounded());
    assert_eq!((evidence.incomplete, evidence.compared_files), (None, 20_000));
    let [difference] = evidence.differences.try_into().unwrap();
    let Difference { path, kind, .. } = difference;
    assert_eq!((path.as_str(), kind.as_str()), ("17", "only-in-previous"));
}

#[test]
fn a_tree_is_compared_down_to_the_limit_of_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    // Relative to the parent directory, because the whole path would be too long.
    let make = |name: &str, end: &str| {
        fn mkdir(above: &OwnedFd, name: &str) -> OwnedFd {
            rustix::fs::mkdirat(above, name, Mode::RWXU).unwrap();
            open_directory(Location { directory: above.as_fd(), name: Path::new(name) }).unwrap()
        }
        let mut directory = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        directory = mkdir(&directory, name);
        for _ in 0..MOST_LEVELS + 10 {
            directory = mkdir(&directory, "directory");
        }
        mkdir(&directory, end);
    };
    make("a", "one");
    make("b", "two");
    let evidence = compare(&dir.path().join("a"), &dir.path().join("b"), unbounded());
    let incomplete = evidence.incomplete.unwrap();
    assert!(incomplete.contains("nested directories"), "{incomplete}");
}
