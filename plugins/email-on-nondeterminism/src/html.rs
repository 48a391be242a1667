//! The HTML part of a mail: one self-contained page without images, scripts or links, readable on a
//! phone, in dark mode, and in readers that drop the style sheet.
//!
//! Everything in a report comes from a build and is hostile. [`Page`] takes mark-up only as
//! literals of this file and escapes whatever else it is given, so nothing can be forgotten.

use crate::report::{Change, File, Report};

/// A page under construction.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// Mark-up, from this file.
    fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, escaped for elements and for quoted attributes.
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

    /// Prose: text in which words between back-ticks are set as code.
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

/// Light by default; readers that know dark mode take the second set of colours.
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
.file { border-top: 1px solid #d9dee5; padding: 12px 0 4px; }
.path { font-weight: 600; overflow-wrap: anywhere; margin: 0 0 4px; }
.hint { display: inline-block; background: #fff4d6; color: #7a4d00; border-radius: 5px; padding: 1px 8px; font-size: 14px; margin: 4px 0 6px; }
.side { display: block; padding: 4px 10px; margin: 3px 0 0; border-left: 4px solid #c8cfd8; overflow-wrap: anywhere; white-space: pre-wrap; }
.old { border-color: #d92d20; background: #fdecea; }
.new { border-color: #12924a; background: #e7f6ec; }
.more { border-top: 1px solid #d9dee5; padding: 12px 0 0; margin: 0; font-weight: 600; }
ul { margin: 0; padding: 0 0 0 20px; }
li { margin: 0 0 6px; }
@media (max-width: 480px) {
  .page { padding: 8px; }
  .card { padding: 14px 14px; border-radius: 8px; }
  .facts th, .facts td { display: block; padding: 0; width: auto; }
  .facts td { padding-bottom: 8px; }
}
@media (prefers-color-scheme: dark) {
  body { background: #14181d; color: #e4e8ec; }
  .card { background: #1d232a; border-color: #323b45; }
  .kicker { color: #ff8a7a; }
  .quiet, th { color: #a3afbb; }
  pre { background: #14181d; }
  .file, .more { border-color: #323b45; }
  .hint { background: #4a3710; color: #ffd98a; }
  .old { border-color: #e5625a; background: #3a1f1e; }
  .new { border-color: #3fb26f; background: #173324; }
}
</style>
<title>"#;

/// The report as one HTML page.
pub fn render(report: &Report) -> String {
    let Report {
        subject,
        summary,
        note,
        facts,
        heading,
        compared,
        files,
        more,
        causes,
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

    page.markup("<div class=\"card\">\n<h2>")
        .text(heading)
        .markup("</h2>\n<p class=\"quiet\">")
        .text(compared)
        .markup("</p>\n");
    for one in files {
        file(&mut page, one);
    }
    if let Some(more) = more {
        page.markup("<p class=\"more\">").text(more).markup("</p>\n");
    }
    page.markup("</div>\n");

    if !causes.is_empty() {
        page.markup("<div class=\"card\">\n<h2>What it looks like</h2>\n");
        for (cause, advice) in causes {
            page.markup("<p><strong>")
                .text(cause)
                .markup(".</strong><br>")
                .prose(advice)
                .markup("</p>\n");
        }
        page.markup("</div>\n");
    }

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

fn file(page: &mut Page, file: &File) {
    page.markup("<div class=\"file\">\n<p class=\"path mono\">").text(&file.path).markup("</p>\n");
    if let Some(hint) = &file.hint {
        page.markup("<p class=\"hint\">").text(hint).markup("</p>\n");
    }
    for one in &file.changes {
        change(page, one);
    }
    page.markup("</div>\n");
}

fn change(page: &mut Page, change: &Change) {
    page.markup("<p>").text(&change.what);
    match &change.values {
        None => {
            page.markup("</p>\n");
        }
        Some((previous, current)) if change.stacked => {
            page.markup("\n<span class=\"side old mono\">")
                .text(previous)
                .markup("</span>\n<span class=\"side new mono\">");
            page.text(current).markup("</span></p>\n");
        }
        Some((previous, current)) => {
            page.markup(": <code>")
                .text(previous)
                .markup("</code> \u{2192} <code>")
                .text(current)
                .markup("</code></p>\n");
        }
    }
}
