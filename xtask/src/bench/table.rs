//! The table of results: each row has a measured command and a yardstick from the same run, and is
//! compared with the last recorded run (`docs/performance.json`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::repository;

/// Runs before the measured ones, which fill caches and the cache of artifacts.
pub(super) const WARM_UP: usize = 3;

/// Times of one command, in milliseconds.
pub(super) struct Figures {
    pub(super) median: f64,
    pub(super) p99: f64,
    least: f64,
    most: f64,
}

impl Figures {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
        };
        Self { median: at(50), p99: at(99), least: at(0), most: at(100) }
    }

    fn text(&self) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

/// What a row compares of its figures.
#[derive(Clone, Copy)]
pub(super) enum Of {
    Median,
    /// The 99th percentile.
    P99,
}

struct Row {
    name: String,
    figures: String,
    yardstick: String,
    ratio: f64,
    aim: Option<f64>,
}

/// All rows, and lines about what has no yardstick.
pub(super) struct Table {
    rows: Vec<Row>,
    pub(super) notes: String,
}

/// A name and how to make the command. Each run makes it anew.
pub(super) type Named<'a> = (&'a str, &'a dyn Fn() -> Command);

impl Table {
    pub(super) fn new() -> Self {
        Self { rows: Vec::new(), notes: String::new() }
    }

    /// Adds a row.
    pub(super) fn add(
        &mut self,
        of: Of,
        (name, subject): (&str, &Figures),
        (yardstick, base): (&str, &Figures),
        aim: Option<f64>,
    ) {
        let (name, ratio) = match of {
            Of::Median => (name.to_owned(), subject.median / base.median),
            Of::P99 => (format!("{name}, 99th percentile"), subject.p99 / base.p99),
        };
        let text = |figures: &Figures| match of {
            Of::Median => figures.text(),
            Of::P99 => format!("{:.2}", figures.p99),
        };
        let row = Row {
            name,
            figures: text(subject),
            yardstick: format!("{yardstick}: {}", text(base)),
            ratio,
            aim,
        };
        eprintln!("{:<50} {:>6.2}", row.name, row.ratio);
        self.rows.push(row);
    }

    /// Runs the commands in turn, so that all see the same machine, and adds a row for each but the
    /// first, which is the yardstick.
    pub(super) fn compare(
        &mut self,
        runs: usize,
        yardstick: Named<'_>,
        subjects: &[(Named<'_>, Option<f64>)],
    ) -> Result<()> {
        let commands: Vec<Named<'_>> =
            std::iter::once(yardstick).chain(subjects.iter().map(|(named, _)| *named)).collect();
        let mut times = vec![Vec::new(); commands.len()];
        for run in 0..WARM_UP + runs {
            for (times, (name, command)) in times.iter_mut().zip(&commands) {
                let time = time(name, &mut command())?;
                if run >= WARM_UP {
                    times.push(time);
                }
            }
        }
        let mut figures = times.into_iter().map(Figures::of);
        let base = figures.next().context("there is no yardstick")?;
        for (figures, ((name, _), aim)) in figures.zip(subjects) {
            self.add(Of::Median, (name, &figures), (yardstick.0, &base), *aim);
        }
        Ok(())
    }

    /// Prints the table as Markdown, compared with the recorded one, and records it if asked to.
    pub(super) fn print(&self, record: bool) -> Result<()> {
        let recorded = recorded()?;
        if !self.rows.is_empty() {
            println!("| | ms: median (range) | yardstick, ms | ratio | aim | recorded ratio |");
            println!("|---|---|---|---|---|---|");
        }
        for Row { name, figures, yardstick, ratio, aim } in &self.rows {
            let aim = aim.map_or(String::new(), |aim| {
                let verdict = if *ratio <= aim { "met" } else { "MISSED" };
                format!("at most {aim}: {verdict}")
            });
            let before = recorded.get(name).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            println!("| {name} | {figures} | {yardstick} | {ratio:.2} | {aim} | {before} |");
        }
        print!("{}", self.notes);
        if record {
            let mut all = recorded;
            all.extend(self.rows.iter().map(|row| {
                let hundredths = (row.ratio * 100.0).round() / 100.0;
                (row.name.clone(), hundredths)
            }));
            let text = serde_json::to_string_pretty(&all)? + "\n";
            let file = file();
            std::fs::write(&file, text)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

/// Returns the run time of a command, or an error if the command fails.
pub(super) fn time(name: &str, command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("{name} does not start"))?;
    let time = begin.elapsed();
    if !status.success() {
        bail!("{name} failed ({status}); run it by hand to see why");
    }
    Ok(time)
}

fn file() -> PathBuf {
    repository().join("docs/performance.json")
}

/// The ratios of the last recorded run, by row.
fn recorded() -> Result<BTreeMap<String, f64>> {
    let file = file();
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a table of ratios", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}
