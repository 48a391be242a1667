//! A comparison as an SVG image: slots in use over time in the first trace, and, with several
//! traces, the makespan of every trace divided by that of Nix's rule. Plain SVG 1.1 without
//! scripts, on white, readable in grey.

use std::fmt::Write as _;

use super::chart::{busy, duration};
use super::compare::{Comparison, STOCK};

/// Sizes in pixels. Names of rules are to the left of [`LEFT`].
const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 30.0;
const STRIP: f64 = 74.0;
const DOTS: f64 = 34.0;
const TOP: f64 = 64.0;
const GAP: f64 = 58.0;
/// The number of steps of a curve.
const STEPS: usize = 240;
/// Blue, orange, green, purple and brown of the Okabe-Ito palette, which colour-blind people can
/// distinguish. Grey is Nix's rule.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f5f00"];
const GREY: &str = "#888888";

/// Returns the image, with `title` as its first line.
pub fn picture(comparison: &Comparison, title: &str) -> String {
    let rules = &comparison.rules;
    let rows = as_float(rules.len());
    let dots = if comparison.traces > 1 { GAP + (rows + 1.0) * DOTS } else { 0.0 };
    let height = TOP + rows * STRIP + 40.0 + dots + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    over_time(&mut svg, comparison);
    if comparison.traces > 1 {
        each_trace(&mut svg, comparison, TOP + rows * STRIP + 40.0 + GAP);
    }
    svg.push_str("</svg>\n");
    svg
}

fn colour(index: usize, name: &str) -> &'static str {
    if name == STOCK {
        GREY
    } else {
        COLOURS.get((index.saturating_sub(1)) % COLOURS.len()).copied().unwrap_or(GREY)
    }
}

fn over_time(svg: &mut String, comparison: &Comparison) {
    let end = comparison.rules.iter().map(|rule| rule.first().makespan).fold(0.0, f64::max);
    let slots: f64 = comparison.machines.iter().map(|machine| f64::from(machine.slots)).sum();
    let x = |time: f64| LEFT + (WIDTH - LEFT - RIGHT) * time / end.max(f64::MIN_POSITIVE);
    let _ = writeln!(
        svg,
        "<text x=\"16\" y=\"48\" fill=\"#444\">slots in use over time (of {slots})</text>"
    );
    for (index, rule) in comparison.rules.iter().enumerate() {
        let base = TOP + as_float(index + 1) * STRIP - 8.0;
        let y = |share: f64| base - (STRIP - 22.0) * share.clamp(0.0, 1.0);
        let mut points = format!("{:.1},{base:.1}", x(0.0));
        for (step, busy) in busy(&rule.first().spans, end, STEPS).into_iter().enumerate() {
            let time = |step: usize| end * as_float(step) / as_float(STEPS);
            let _ = write!(
                points,
                " {:.1},{1:.1} {2:.1},{1:.1}",
                x(time(step)),
                y(busy / slots),
                x(time(step + 1))
            );
        }
        let _ = write!(points, " {:.1},{base:.1}", x(end));
        let fill = colour(index, &rule.name);
        let done = x(rule.first().makespan);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n<polygon points=\"{points}\" fill=\"{fill}\" fill-opacity=\"0.75\"/>\n\
             <line x1=\"{LEFT}\" y1=\"{base}\" x2=\"{:.1}\" y2=\"{base}\" stroke=\"#bbb\"/>\n\
             <line x1=\"{done:.1}\" y1=\"{:.1}\" x2=\"{done:.1}\" y2=\"{base}\" stroke=\"{fill}\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\">{}</text>\n",
            LEFT - 12.0,
            base - 16.0,
            escaped(&rule.name),
            WIDTH - RIGHT,
            y(1.0),
            done - 5.0,
            y(1.0) + 10.0,
            duration(rule.first().makespan),
        );
    }
    let bound = x(comparison.bound.ratios().first().copied().unwrap_or(0.0)
        * comparison.rules.first().map_or(0.0, |stock| stock.first().makespan));
    let bottom = TOP + as_float(comparison.rules.len()) * STRIP;
    let _ = write!(
        svg,
        "<line x1=\"{bound:.1}\" y1=\"{TOP}\" x2=\"{bound:.1}\" y2=\"{bottom}\" stroke=\"black\" stroke-dasharray=\"4 3\"/>\n\
         <text x=\"{bound:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"12\">lower bound</text>\n\
         <text x=\"{LEFT}\" y=\"{1:.1}\" text-anchor=\"middle\" font-size=\"12\">0</text>\n",
        bottom + 14.0,
        bottom + 14.0,
    );
}

fn each_trace(svg: &mut String, comparison: &Comparison, top: f64) {
    let policies: Vec<_> =
        comparison.rules.iter().enumerate().filter(|(_, rule)| rule.name != STOCK).collect();
    let all = policies
        .iter()
        .flat_map(|(_, rule)| rule.ratios())
        .chain(comparison.bound.ratios())
        .copied();
    let largest = all.clone().fold(1.0, f64::max);
    let (low, high) = (
        ((all.fold(1.0, f64::min) - 0.02) * 10.0).floor() / 10.0,
        ((largest + 0.02) * 10.0).ceil() / 10.0,
    );
    let x = |ratio: f64| LEFT + (WIDTH - LEFT - RIGHT) * (ratio - low) / (high - low);
    let bottom = top + as_float(policies.len() + 1) * DOTS;
    let _ = writeln!(
        svg,
        "<text x=\"16\" y=\"{:.1}\" fill=\"#444\">makespan over that of Nix's own rule, {} traces (bar: median)</text>",
        top - 16.0,
        comparison.traces
    );
    let mut tick = low;
    while tick <= high + 0.001 {
        let _ = write!(
            svg,
            "<line x1=\"{0:.1}\" y1=\"{top}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"{1}\"/>\n\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\" font-size=\"12\">{tick:.1}</text>\n",
            x(tick),
            if (tick - 1.0).abs() < 0.001 { "#444" } else { "#ddd" },
            bottom + 16.0
        );
        tick += 0.1;
    }
    let bound = ("lower bound", comparison.bound.ratios(), "black");
    let rows = policies
        .iter()
        .map(|(index, rule)| (rule.name.as_str(), rule.ratios(), colour(*index, &rule.name)));
    for (row, (name, ratios, fill)) in std::iter::once(bound).chain(rows).enumerate() {
        let y = top + (as_float(row) + 0.5) * DOTS;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 12.0,
            y + 4.0,
            escaped(name)
        );
        for ratio in ratios {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" fill-opacity=\"0.5\"/>",
                x(*ratio)
            );
        }
        let median = super::compare::quantile(ratios, 50);
        let _ = write!(
            svg,
            "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\" stroke=\"{fill}\" stroke-width=\"3\"/>\n\
             <text x=\"{0:.1}\" y=\"{3:.1}\" text-anchor=\"middle\" font-size=\"11\">{median:.2}</text>\n",
            x(median),
            y - 9.0,
            y + 9.0,
            y - 11.0
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "rows and steps are few")]
fn as_float(number: usize) -> f64 {
    number as f64
}

/// Escapes foreign text (names of plugins) for XML 1.0.
fn escaped(text: &str) -> String {
    hookrun_nix::terminal::printable(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
