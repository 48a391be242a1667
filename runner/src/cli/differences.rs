//! Formats the differences between two builds for `hookrun log` and `hookrun queue show`.

use std::fmt::Write as _;

use super::output::{Style, printable, styled};
use hookrun_nix::evidence::{Difference, Evidence};

/// The number of differences that are listed without `--verbose`.
pub(super) const SOME: usize = 5;

/// Returns lines about the first `most` differences, each indented by four blanks.
pub(super) fn text(evidence: &Evidence, most: usize, colours: bool) -> String {
    let mut text = String::new();
    for difference in evidence.differences.iter().take(most) {
        let Difference { path, kind, previous, current, offset, details } = difference;
        let path = if path.is_empty() { "the output itself" } else { path };
        let _ = write!(
            text,
            "    differs: {}, {}",
            styled(&printable(path), Style::Strong, colours),
            printable(kind)
        );
        let line = details.iter().find(|(name, _)| name == "line").map(|(_, line)| line);
        if let Some(line) = line {
            let _ = write!(text, " in line {}", printable(line));
        } else if let Some(offset) = offset {
            let _ = write!(text, " from byte {offset} on");
        }
        let values = [("previous", previous), ("current", current)];
        for (name, value) in values.iter().filter(|(_, value)| !value.is_empty()) {
            let name = styled(name, Style::Faint, colours);
            let _ = write!(text, "; {name} {}", printable(value));
        }
        text.push('\n');
    }
    let more = evidence.differences.len().saturating_sub(most);
    if more > 0 {
        let _ = writeln!(text, "    and {more} more: hookrun log --verbose");
    }
    if let Some(why) = &evidence.incomplete {
        let _ = writeln!(text, "    the comparison is incomplete: {}", printable(why));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differences_are_listed_and_the_others_counted() {
        let difference = |path: &str, kind: &str, offset| Difference {
            path: path.to_owned(),
            kind: kind.to_owned(),
            previous: "\"a\"".to_owned(),
            current: "\"b\u{202e}\"".to_owned(),
            offset,
            details: Vec::new(),
        };
        let mut evidence = Evidence {
            differences: vec![
                difference("bin/tool", "content", Some(12)),
                Difference {
                    details: vec![("line".to_owned(), "3".to_owned())],
                    ..difference("etc/conf", "content", Some(40))
                },
                difference("", "type", None),
                Difference {
                    current: String::new(),
                    ..difference("doc", "only-in-previous", None)
                },
            ],
            ..Evidence::default()
        };
        insta::assert_snapshot!(text(&evidence, 3, false), @r#"
            differs: bin/tool, content from byte 12 on; previous "a"; current "b\u{202e}"
            differs: etc/conf, content in line 3; previous "a"; current "b\u{202e}"
            differs: the output itself, type; previous "a"; current "b\u{202e}"
            and 1 more: hookrun log --verbose
        "#);
        evidence.incomplete = Some("the time limit was reached".to_owned());
        insta::assert_snapshot!(text(&evidence, 9, false).lines().skip(3).collect::<Vec<_>>().join("\n"), @r#"
            differs: doc, only-in-previous; previous "a"
            the comparison is incomplete: the time limit was reached
        "#);
    }
}
