//! A progress bar on standard error, if that is a terminal.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that is removed at the end.
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Shows a bar, unless standard error is not a terminal.
    pub(super) fn new() -> Self {
        Self(std::io::stderr().is_terminal().then(|| ProgressBar::new(0)))
    }

    /// Shows the progress of a step; `of` is 0 if its end is not known.
    pub(super) fn show(&self, what: &'static str, done: u64, of: u64) {
        let Some(bar) = &self.0 else { return };
        let template = if of == 0 { "{msg} {pos}" } else { "{bar:30} {pos}/{len} {msg}  {eta}" };
        if bar.message() != what
            && let Ok(style) = ProgressStyle::with_template(template)
        {
            bar.set_style(style);
            bar.set_message(what);
        }
        bar.set_length(of);
        bar.set_position(done);
    }

    /// Prints a line above the bar.
    pub(super) fn line(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| hookrun_nix::terminal::say(text)),
            None => hookrun_nix::terminal::say(text),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
