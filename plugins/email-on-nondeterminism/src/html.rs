//! The HTML part of a mail: one self-contained page without images, scripts or links. It is
//! readable on a phone, in dark mode, and in readers that ignore the style sheet.
//!
//! All values in a report come from a build and are not trusted. [`Page`] accepts mark-up only as
//! literals of this file, and escapes all other text.

use crate::report::{Example, Report, Section};
use crate::value::{Row, Side};

/// A page under construction.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// Appends mark-up of this file.
    fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Appends text, escaped for elements and for quoted attributes.
    fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// Appends prose, in which words between back-ticks are set as code.
    fn prose(&mut self, prose: &str) -> &mut Self {
        for (index, part) in prose.split('`').enumerate() {
            if index.is_multiple_of(2) {
                self.text(part);
            } else {
                self.markup("<code>").text(part).markup("</code>");
            }
        }
        self
    }
}

/// The head of the page. Colours are light by default; readers that support dark mode use the
/// second set.
const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="supported-color-schemes" content="light dark">
<style>
:root { color-scheme: light dark; }
body { margin: 0; padding: 0; background: #f3f4f6; color: #1f2933; font: 16px/1.5 -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; -webkit-text-size-adjust: 100%; }
.page { max-width: 720px; margin: 0 auto; padding: 24px 16px; }
.card { background: #ffffff; border: 1px solid #d9dee5; border-radius: 10px; padding: 20px 24px; margin: 0 0 16px; }
h1 { font-size: 21px; line-height: 1.3; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 17px; line-height: 1.3; margin: 0 0 8px; }
p { margin: 0 0 10px; }
.kicker { color: #b42318; font-size: 13px; font-weight: 600; letter-spacing: .02em; margin: 0 0 4px; }
.quiet { color: #5b6773; font-size: 14px; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; vertical-align: top; font-weight: 600; font-size: 14px; color: #5b6773; padding: 5px 16px 5px 0; white-space: nowrap; width: 1%; }
td { vertical-align: top; padding: 5px 0; overflow-wrap: anywhere; }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: 13.5px; }
pre { margin: 6px 0 0; padding: 10px 12px; border-radius: 6px; background: #f3f4f6; white-space: pre-wrap; overflow-wrap: anywhere; }
h3 { font-size: 16px; line-height: 1.35; margin: 0 0 4px; }
.group { border-top: 1px solid #d9dee5; padding: 14px 0 2px; margin-top: 12px; }
.example { border: 1px solid #d9dee5; border-radius: 8px; padding: 10px 12px; margin: 8px 0 10px; }
.path { font-weight: 600; overflow-wrap: anywhere; margin: 0 0 2px; }
.what { font-size: 14px; color: #5b6773; margin: 6px 0 2px; }
.side { display: block; padding: 3px 8px; margin: 2px 0 0; border-left: 4px solid #c8cfd8; overflow-wrap: anywhere; white-space: pre-wrap; }
.label { display: inline-block; min-width: 5.2em; color: #5b6773; font-size: 12px; font-family: -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
.bytes .label { min-width: 9em; }
.bytes .label .mono { font-size: 12px; }
.old { border-color: #d92d20; background: #fdf3f2; }
.new { border-color: #12924a; background: #f0f9f3; }
mark { color: inherit; border-radius: 2px; text-decoration: underline; }
.old mark { background: #f8c5c0; }
.new mark { background: #b4e4c5; }
.names { margin: 0 0 4px; overflow-wrap: anywhere; }
.names .mono { word-spacing: .35em; }
ul { margin: 0; padding: 0 0 0 20px; }
li { margin: 0 0 6px; }
@media (max-width: 480px) {
  .page { padding: 8px; }
  .card { padding: 14px 14px; border-radius: 8px; }
  .facts th, .facts td { display: block; padding: 0; width: auto; }
  .facts td { padding-bottom: 8px; }
  .example { padding: 8px; }
  .side { padding: 3px 6px; font-size: 11.5px; }
  .label { min-width: 4.4em; font-size: 11px; }
  .bytes { font-size: 10px; }
  .bytes .label { min-width: 6.8em; font-size: 10px; }
  .bytes .label .mono { font-size: 10px; }
}
@media (prefers-color-scheme: dark) {
  body { background: #14181d; color: #e4e8ec; }
  .card { background: #1d232a; border-color: #323b45; }
  .kicker { color: #ff8a7a; }
  .quiet, .what, .label, th { color: #a3afbb; }
  pre { background: #14181d; }
  .group, .example { border-color: #323b45; }
  .side { border-color: #4a5561; }
  .old { border-color: #e5625a; background: #2c1f20; }
  .new { border-color: #3fb26f; background: #1a2a21; }
  .old mark { background: #7a2d28; }
  .new mark { background: #1f6b3f; }
}
</style>
<title>"#;

/// Renders the report as an HTML page.
pub fn render(report: &Report) -> String {
    let Report {
        subject,
        summary,
        note,
        facts,
        heading,
        compared,
        sections,
        steps,
        caveats,
        footer,
    } = report;
    let mut page = Page::default();
    page.markup(HEAD).text(subject).markup("</title>\n</head>\n<body>\n<div class=\"page\">\n");

    page.markup("<div class=\"card\">\n<p class=\"kicker\">Not reproducible</p>\n<h1>");
    page.text(subject.strip_prefix("not reproducible: ").unwrap_or(subject))
        .markup("</h1>\n<p>")
        .prose(summary)
        .markup("</p>\n");
    if let Some(note) = note {
        page.markup("<p>").prose(note).markup("</p>\n");
    }
    page.markup("<table class=\"facts\" role=\"presentation\">\n");
    for (name, value) in facts {
        page.markup("<tr><th>")
            .text(name)
            .markup("</th><td class=\"mono\">")
            .text(value)
            .markup("</td></tr>\n");
    }
    page.markup("</table>\n</div>\n");

    page.markup("<div class=\"card\">\n<h2>").text(heading).markup("</h2>\n");
    for line in compared {
        page.markup("<p class=\"quiet\">").text(line).markup("</p>\n");
    }
    for one in sections {
        section(&mut page, one);
    }
    page.markup("</div>\n");

    page.markup("<div class=\"card\">\n<h2>What to do next</h2>\n");
    for step in steps {
        page.markup("<p>")
            .prose(&step.what)
            .markup("</p>\n<pre style=\"margin-bottom:14px\">")
            .text(&step.command)
            .markup("</pre>\n");
    }
    page.markup("</div>\n<div class=\"card\">\n<h2>Please note</h2>\n<ul>\n");
    for caveat in caveats {
        page.markup("<li>").prose(caveat).markup("</li>\n");
    }
    page.markup("</ul>\n</div>\n<p class=\"quiet\">")
        .prose(footer)
        .markup("</p>\n</div>\n</body>\n</html>\n");
    page.0
}

fn section(page: &mut Page, section: &Section) {
    let Section { title, advice, examples, names, more } = section;
    page.markup("<div class=\"group\">\n<h3>").text(title).markup("</h3>\n");
    if let Some(advice) = advice {
        page.markup("<p>").prose(advice).markup("</p>\n");
    }
    for one in examples {
        example(page, one);
    }
    if !names.is_empty() && !examples.is_empty() {
        page.markup("<p class=\"what\">All files:</p>\n");
    }
    for (directory, names) in names {
        page.markup("<p class=\"names\">");
        if !directory.is_empty() {
            page.markup("<code>").text(directory).markup("</code><br>");
        }
        page.markup("<span class=\"mono\">").text(&names.join(" ")).markup("</span></p>\n");
    }
    if let Some(more) = more {
        page.markup("<p class=\"what\">").text(more).markup("</p>\n");
    }
    page.markup("</div>\n");
}

fn example(page: &mut Page, example: &Example) {
    let Example { path, extent, changes } = example;
    page.markup("<div class=\"example\">\n<p class=\"path mono\">").text(path).markup("</p>\n");
    if let Some(extent) = extent {
        page.markup("<p class=\"what\">").text(extent).markup("</p>\n");
    }
    for change in changes {
        page.markup("<p class=\"what\">").text(&change.what).markup("</p>\n");
        for one in &change.rows {
            row(page, one);
        }
    }
    page.markup("</div>\n");
}

fn row(page: &mut Page, row: &Row) {
    let Row { side, offset, pieces } = row;
    page.markup(match side {
        Side::Previous => "<span class=\"side old mono",
        Side::Current => "<span class=\"side new mono",
        Side::Both => "<span class=\"side mono",
    });
    page.markup(if offset.is_some() { " bytes\">" } else { "\">" });
    if let Some(offset) = offset {
        page.markup("<span class=\"label\">")
            .text(side.label())
            .markup(" <span class=\"mono\">")
            .text(&format!("{offset:x}"))
            .markup("</span></span> ");
    } else {
        page.markup("<span class=\"label\">").text(side.label()).markup("</span> ");
    }
    for piece in pieces {
        if piece.marked {
            page.markup("<mark>").text(&piece.text).markup("</mark>");
        } else {
            page.text(&piece.text);
        }
    }
    page.markup("</span>\n");
}
