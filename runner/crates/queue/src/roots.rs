//! Garbage-collector roots for the outputs of queued events: symbolic links below Nix's `gcroots`.
//!
//! The hook creates them before it commits the event, because the build keeps its own roots only
//! while it runs. The worker removes them when the last task of the event has ended. When it takes
//! an event, it creates roots again that a crash has lost. Names are derived from the event's id,
//! so no list of them is needed. Results of `--check` are not rooted: they are not valid paths, and
//! a root would not keep them.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hookrun_nix::event::Event;
use hookrun_nix::layout;

/// The name of the directory of hookrun's roots, below `gcroots` or below a user's own part of it.
const DIRECTORY: &str = "hookrun";
/// The mode of the directory. The Nix of other users must be able to list roots.
const DIRECTORY_MODE: u32 = 0o755;

/// Creates the missing roots of an event, where this user may: root and the owner of a single-user
/// installation below `gcroots`, other users below `gcroots/per-user/$USER`. Returns the number of
/// outputs that have roots. The others may be collected before their tasks run.
pub fn make(event: &Event) -> usize {
    let outputs = event.output_paths();
    if outputs.is_empty() {
        return 0;
    }
    candidates(&event.nix.state)
        .iter()
        .map(|directory| make_in(directory, event, &outputs))
        .find(|made| *made > 0)
        .unwrap_or(0)
}

fn make_in(directory: &Path, event: &Event, outputs: &[&str]) -> usize {
    // The worker may know other outputs than the hook did.
    let there: Vec<PathBuf> = (0..)
        .map(|number| std::fs::read_link(directory.join(link_name(&event.id, number))))
        .map_while(Result::ok)
        .collect();
    let mut made = 0;
    let mut number = there.len();
    for output in outputs {
        if there.iter().any(|target| target == Path::new(output)) {
            made += 1;
            continue;
        }
        let link = directory.join(link_name(&event.id, number));
        let result = symlink(output, &link).or_else(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                // The mode does not depend on the umask of the user who called Nix.
                layout::make(directory, DIRECTORY_MODE)?;
                symlink(output, &link)
            } else {
                Err(error)
            }
        });
        match result {
            Ok(()) => (made, number) = (made + 1, number + 1),
            // An error for one root applies to all.
            Err(_) => break,
        }
    }
    made
}

/// Removes the roots of an event.
pub fn remove(event: &Event) {
    remove_by_id(&event.nix.state, &event.id);
}

/// Returns the ids of events with roots that are older than `age`, for one Nix. Unless the event is
/// open, they belong to a hook that was killed before it handed over the event, or to a worker that
/// was killed before it removed them.
pub fn ids(nix_state: &Path, age: Duration) -> BTreeSet<String> {
    let now = SystemTime::now();
    let old = |entry: &std::fs::DirEntry| {
        let made = entry.metadata().and_then(|found| found.modified());
        made.is_ok_and(|made| now.duration_since(made).is_ok_and(|passed| passed > age))
    };
    let entries = candidates(nix_state)
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten();
    let names = entries.filter(old).filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| Some(name.rsplit_once('-')?.0.to_owned())).collect()
}

/// Removes the roots of the event called `id`.
pub fn remove_by_id(nix_state: &Path, id: &str) {
    for directory in candidates(nix_state) {
        for number in 0.. {
            if std::fs::remove_file(directory.join(link_name(id, number))).is_err() {
                break;
            }
        }
    }
}

/// Returns the number of roots for one Nix.
pub fn count(nix_state: &Path) -> usize {
    candidates(nix_state)
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .count()
}

/// Returns the directories for roots, in order of preference.
fn candidates(nix_state: &Path) -> Vec<PathBuf> {
    let gcroots = nix_state.join("gcroots");
    let mut directories = vec![gcroots.join(DIRECTORY)];
    // A user's own directory, which Nix creates for users of profiles.
    if let Some(user) = std::env::var_os("USER")
        .filter(|user| !user.is_empty() && !rustix::process::getuid().is_root())
    {
        directories.push(gcroots.join("per-user").join(user).join(DIRECTORY));
    }
    directories
}

fn link_name(id: &str, number: usize) -> String {
    format!("{id}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::post_build;

    #[test]
    fn roots_are_made_once_and_removed() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("gcroots")).unwrap();
        let mut event = post_build("hello-1.0");
        event.nix.state = state.path().to_owned();
        assert_eq!((make(&event), make(&event), count(state.path())), (1, 1, 1));
        let link = state.path().join("gcroots/hookrun").join(format!("{}-0", event.id));
        assert_eq!(
            std::fs::read_link(link).unwrap().to_str(),
            event.output_paths().first().copied()
        );
        let other = format!("{}-dev", event.output_paths()[0]);
        if let hookrun_nix::event::HookEvent::PostBuild(build) = &mut event.hook {
            build.outputs[0].path = other;
        }
        assert_eq!((make(&event), count(state.path())), (1, 2), "another output");
        remove(&event);
        assert_eq!(count(state.path()), 0);
        event.nix.state = state.path().join("nowhere");
        assert_eq!(make(&event), 0, "without a Nix there is no root and no error");
    }
}
