//! Groups the files of a finding by the kind of their differences. Each group has examples and the
//! names of all its files. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::cause::{self, Cause};
use crate::finding::{Difference, Finding};

/// What the files of a group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A known cause.
    Cause(Cause),
    /// The contents differ and match no known pattern.
    Contents,
    /// The link target.
    LinkTarget,
    /// The executable bit.
    Mode,
    /// The type.
    Type,
    /// Something else.
    Other,
    /// The comparison names the file without its contents.
    Unseen,
}

/// Files of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<'a> {
    /// What they have in common.
    pub kind: Kind,
    /// Their paths, sorted.
    pub files: Vec<&'a str>,
    /// The differences of this kind to show, for the first few files.
    pub examples: Vec<(&'a str, Vec<&'a Difference>)>,
}

/// Returns how many differences of this kind are shown for one file. For reordered or compressed
/// files, one place tells as much as several.
const fn shown(kind: Kind) -> usize {
    match kind {
        Kind::Cause(Cause::Order | Cause::Compressed | Cause::ArchiveTime) => 1,
        _ => 2,
    }
}

/// Returns all groups, starting with the one that has the most files.
pub fn groups(finding: &Finding) -> Vec<Group<'_>> {
    let mut found: BTreeMap<Kind, Group<'_>> = BTreeMap::new();
    for (path, differences) in finding.files() {
        let kinds: Vec<(Kind, &Difference)> = differences
            .iter()
            .filter(|difference| difference.kind != "size" || differences.len() == 1)
            .flat_map(|difference| {
                kinds(difference, finding).into_iter().map(move |kind| (kind, *difference))
            })
            .collect();
        let of_file: BTreeSet<Kind> = kinds.iter().map(|(kind, _)| *kind).collect();
        for one in &of_file {
            // A difference that another one of the same file explains is not mentioned.
            let explained = match one {
                Kind::Contents => of_file
                    .iter()
                    .any(|other| matches!(other, Kind::Cause(cause) if !cause.follows())),
                Kind::Cause(cause) if cause.follows() => of_file
                    .iter()
                    .any(|other| !matches!(other, Kind::Cause(cause) if cause.follows())),
                _ => false,
            };
            if explained {
                continue;
            }
            let group = found.entry(*one).or_insert_with(|| Group {
                kind: *one,
                files: Vec::new(),
                examples: Vec::new(),
            });
            group.files.push(path);
            let shown: Vec<&Difference> = kinds
                .iter()
                .filter(|(kind, _)| kind == one)
                .map(|(_, difference)| *difference)
                .take(shown(*one))
                .collect();
            group.examples.push((path, shown));
        }
    }
    let mut groups: Vec<Group<'_>> = found.into_values().collect();
    groups.sort_by_key(|group| {
        let last = matches!(group.kind, Kind::Unseen)
            || matches!(group.kind, Kind::Cause(cause) if cause.follows());
        (last, std::cmp::Reverse(group.files.len()), group.kind)
    });
    groups
}

fn kinds(difference: &Difference, finding: &Finding) -> Vec<Kind> {
    let causes = cause::of_difference(difference, finding);
    if !causes.is_empty() {
        return causes.into_iter().map(Kind::Cause).collect();
    }
    vec![match difference.kind.as_str() {
        "content" if difference.previous.is_empty() && difference.current.is_empty() => {
            Kind::Unseen
        }
        "content" | "size" => Kind::Contents,
        "link-target" => Kind::LinkTarget,
        "mode" => Kind::Mode,
        "type" => Kind::Type,
        _ => Kind::Other,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(differences: &[(&str, &str, &str, &str)]) -> Finding {
        let differences = differences.iter().map(|(path, kind, previous, current)| Difference {
            path: (*path).into(),
            kind: (*kind).into(),
            previous: (*previous).into(),
            current: (*current).into(),
            ..Difference::default()
        });
        Finding { differences: differences.collect(), ..Finding::default() }
    }

    fn shown(finding: &Finding) -> Vec<(Kind, Vec<&str>)> {
        groups(finding).into_iter().map(|group| (group.kind, group.files)).collect()
    }

    #[test]
    fn files_are_grouped_by_the_kind_of_their_differences() {
        let finding = finding(&[
            ("a", "content", r#""pid 1""#, r#""pid 2""#),
            ("a", "size", "5", "6"),
            ("b", "content", r#""pid 3""#, r#""pid 4""#),
            ("c", "content", r#""12:00:01""#, r#""12:00:02""#),
            ("c", "content", r#""one""#, r#""two""#),
            ("d", "content", r#""one""#, r#""two""#),
            ("e", "mode", "0444", "0555"),
            ("f", "content", "", ""),
        ]);
        assert_eq!(
            shown(&finding),
            [
                (Kind::Cause(Cause::Number), vec!["a", "b"]),
                (Kind::Cause(Cause::Date), vec!["c"]),
                (Kind::Contents, vec!["d"]),
                (Kind::Mode, vec!["e"]),
                (Kind::Unseen, vec!["f"]),
            ]
        );
    }

    #[test]
    fn a_file_of_several_causes_is_in_each_group() {
        let finding = finding(&[
            ("a", "content", r#""12:00:01""#, r#""12:00:02""#),
            ("a", "content", r#""pid 1""#, r#""pid 2""#),
        ]);
        assert_eq!(shown(&finding).len(), 2);
    }
}
