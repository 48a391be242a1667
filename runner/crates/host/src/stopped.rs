//! The message of a run that a trap ended: the text of a panic, else the last lines of standard
//! error, and the frames of the plugin's own code. Also what to use instead of sockets, files and
//! threads, which plugins do not have.
//!
//! All of it is the guest's text. It is bounded here, and made safe where it is shown.

use std::borrow::Cow;

use hookrun_nix::outcome::{Outcome, Usage};

/// Frames of the plugin's own code in a message.
const SHOWN_FRAMES: usize = 3;
/// The last lines of standard error in a message: Python and JavaScript write what was raised in
/// the last line.
const SHOWN_LINES: usize = 3;
/// Characters of the guest's text in a message.
const SHOWN_TEXT: usize = 600;

/// What Rust writes before the place of a panic (`std::panicking::default_hook`).
const PANICKED: &str = "panicked at ";
/// The beginning of Rust's note about a variable that a guest does not have.
pub(super) const BACKTRACE_NOTE: &str = "note: run with `RUST_BACKTRACE=1`";

/// Crates whose frames are below every panic and trap of Rust, and tell its author nothing.
const RUNTIME_CRATES: [&str; 8] =
    ["std", "core", "alloc", "dlmalloc", "__rustc", "panic_abort", "hookrun_sdk", "wit_bindgen"];
/// Functions without a path that are the same.
const RUNTIME_FUNCTIONS: [&str; 5] =
    ["abort", "__rust_start_panic", "rust_begin_unwind", "cabi_realloc", "_start"];

/// Describes the end of a run by a trap or an exit. `what` is the engine's description, `stderr`
/// the last lines of standard error, `frames` the names of functions from the innermost outwards.
pub(super) fn describe(what: &str, stderr: &[String], frames: &[Option<&str>]) -> String {
    let own = own_frames(frames);
    let stack =
        if own.is_empty() { String::new() } else { format!(" (in {})", own.join(", called by ")) };
    if let Some(panic) = panic(stderr) {
        return format!("panicked at {panic}{stack}");
    }
    let last = stderr.iter().rev().take(SHOWN_LINES).rev();
    let last: Vec<&str> = last.map(|line| line.trim()).collect();
    if last.is_empty() {
        return format!("{what}{stack}");
    }
    format!("{what}; its last output was: {}{stack}", cut(&last.join(" | ")))
}

/// Returns the place and the text of the last panic, as `src/lib.rs:4:106: oh no`.
fn panic(stderr: &[String]) -> Option<String> {
    let at = stderr.iter().rposition(|line| line.contains(PANICKED))?;
    let (first, rest) = stderr.get(at..)?.split_first()?;
    let (_, place) = first.split_once(PANICKED)?;
    let text: Vec<&str> = rest
        .iter()
        .map(|line| line.trim())
        .take_while(|line| !line.starts_with("note: ") && !line.starts_with("stack backtrace:"))
        .collect();
    let place = place.trim_end();
    if text.is_empty() {
        return Some(cut(place).into_owned());
    }
    let place = place.strip_suffix(':').unwrap_or(place);
    Some(cut(&format!("{place}: {}", text.join(" "))).into_owned())
}

/// Returns the names of the innermost frames that belong to the plugin, demangled.
fn own_frames(frames: &[Option<&str>]) -> Vec<String> {
    let names = frames.iter().flatten().map(|name| demangled(name));
    names.filter(|name| !is_runtime(name)).take(SHOWN_FRAMES).collect()
}

fn demangled(name: &str) -> String {
    match rustc_demangle::try_demangle(name) {
        Ok(name) => format!("{name:#}"),
        Err(_) => name.to_owned(),
    }
}

/// Returns whether a function is part of a language's runtime or of the SDK.
fn is_runtime(name: &str) -> bool {
    let first = name.trim_start_matches(['<', '&', '(']);
    let first = first.split("::").next().unwrap_or_default();
    // `std[4f5e]` of a symbol that is not made short.
    let first = first.split('[').next().unwrap_or_default();
    let has_path = name.contains("::");
    (has_path && RUNTIME_CRATES.contains(&first)) || RUNTIME_FUNCTIONS.contains(&name)
}

fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_TEXT) {
        Some((end, _)) => Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

/// Adds what to use instead, if a run failed because plugins have no sockets, files or threads.
pub(super) fn with_hint(outcome: Outcome, usage: &Usage) -> Outcome {
    let hinted = |message: String| match hint(&message, usage) {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    };
    match outcome {
        Outcome::Failed { message, transient, retry_after_ms } => {
            Outcome::Failed { message: hinted(message), transient, retry_after_ms }
        }
        Outcome::Trapped { message } => Outcome::Trapped { message: hinted(message) },
        other => other,
    }
}

fn hint(message: &str, usage: &Usage) -> Option<&'static str> {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let sockets = usage.calls.keys().any(|call| call.starts_with("wasi:sockets/"));
    if sockets || has(&["failed to lookup address information", "gaierror"]) {
        return Some(
            "plugins have no sockets: send requests with `hookrun_sdk::http`, or with a client over \
             `wasi:http`",
        );
    }
    // The numbers of wasi-libc: 44 is ENOENT, 76 is ENOTCAPABLE.
    if has(&["os error 44", "[Errno 44]", "os error 76", "[Errno 76]"]) {
        return Some(
            "plugins have no files: read paths of an event with `nix_store`, and store data with \
             `state` or `object_store`",
        );
    }
    if has(&["failed to spawn thread", "can't start new thread"]) {
        return Some("plugins have no threads: do the work in one");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: &str = "trapped: wasm trap: wasm `unreachable` instruction executed";

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_panic_is_described_by_its_own_text_and_frames() {
        let stderr = lines(
            "an earlier line\n\nthread '<unnamed>' (1) panicked at src/lib.rs:4:106:\noh no\n\
             note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
        );
        let frames = [
            Some("_RNvNtNtNtNtCshXfaRvt2tfW_3std3sys3pal4wasi7helpers14abort_internal"),
            Some("_RNvNtCshXfaRvt2tfW_3std7process5abort"),
            Some("__rust_start_panic"),
            None,
            Some("_ZN4core9panicking9panic_fmt17h0123456789abcdefE"),
            Some("_ZN7webhook6handle17h0123456789abcdefE"),
            Some("hookrun:post-build/post-build@0.1.0#handle"),
        ];
        insta::assert_snapshot!(describe(TRAP, &stderr, &frames), @"panicked at src/lib.rs:4:106: oh no (in webhook::handle, called by hookrun:post-build/post-build@0.1.0#handle)");
    }

    #[test]
    fn a_trap_of_an_interpreter_is_described_by_its_last_lines() {
        let stderr = lines(
            "Traceback (most recent call last):\n  File \"app.py\", line 9, in handle\n    \
             return outcome.details\nAttributeError: 'NoneType' object has no attribute 'details'",
        );
        insta::assert_snapshot!(describe(TRAP, &stderr, &[None, None]), @"trapped: wasm trap: wasm `unreachable` instruction executed; its last output was: File \"app.py\", line 9, in handle | return outcome.details | AttributeError: 'NoneType' object has no attribute 'details'");
        insta::assert_snapshot!(describe(TRAP, &[], &[Some("divide")]), @"trapped: wasm trap: wasm `unreachable` instruction executed (in divide)");
        let long = describe(TRAP, &["x".repeat(5000)], &[]);
        assert!(long.len() < SHOWN_TEXT + 200, "{}", long.len());
    }

    #[test]
    fn a_failure_for_lack_of_sockets_files_or_threads_names_what_to_use() {
        let hinted = |message: &str, call: Option<&str>| {
            let calls = call.map(|call| (call.to_owned(), 1)).into_iter().collect();
            let usage = Usage { calls, ..Usage::default() };
            let failed = Outcome::Failed {
                message: message.to_owned(),
                transient: false,
                retry_after_ms: None,
            };
            with_hint(failed, &usage).message().to_owned()
        };
        insta::assert_snapshot!(hinted("Permission denied (os error 2)", Some("wasi:sockets/tcp-create-socket.create-tcp-socket")), @"Permission denied (os error 2); plugins have no sockets: send requests with `hookrun_sdk::http`, or with a client over `wasi:http`");
        insta::assert_snapshot!(hinted("a.txt: No such file or directory (os error 44)", None), @"a.txt: No such file or directory (os error 44); plugins have no files: read paths of an event with `nix_store`, and store data with `state` or `object_store`");
        insta::assert_snapshot!(hinted("failed to spawn thread: Unsupported", None), @"failed to spawn thread: Unsupported; plugins have no threads: do the work in one");
        assert_eq!(hinted("the server is busy", Some("state.get")), "the server is busy");
    }
}
