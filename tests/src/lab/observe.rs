//! Observes the effects of hookrun in a scene: attempts, queued events, mail, builds and processes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hookrun_builders::history::{BuildRow, Record, RowSelection};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Diff, Event, HookEvent, NixDirs, Output, PostBuild};
use hookrun_nix::evidence::{Difference, Evidence};
use rustix::process::Pid;

use super::{Attempt, Scene, journal};

/// A number of rows that no test reaches.
const ALL: RowSelection<'static> = RowSelection::Last(1000);

impl Scene {
    /// Returns the attempts that `hookrun log` lists, oldest first.
    #[track_caller]
    pub fn attempts(&self) -> Vec<Attempt> {
        let ran = self.hookrun(&["log", "--all", "--format", "json"]).expect_success();
        match serde_json::from_str(&ran.stdout) {
            Ok(serde_json::Value::Array(values)) => values.iter().map(Attempt::read).collect(),
            _ => panic!("not a JSON array: {}", ran.account()),
        }
    }

    /// Returns the tasks that were tried, sorted, as `alpha cache done`: derivation, plugin and
    /// class of the last attempt.
    #[track_caller]
    pub fn tasks(&self) -> Vec<String> {
        journal::tasks(&self.attempts())
    }

    /// Fails unless [`Scene::tasks`] returns these.
    #[track_caller]
    pub fn expect_tasks(&self, expected: &[&str]) {
        let attempts = self.attempts();
        assert_eq!(journal::tasks(&attempts), expected, "all attempts: {attempts:#?}");
    }

    /// Returns the files of the spool that wait for a worker.
    pub fn spooled(&self) -> Vec<PathBuf> {
        let mut files = files_in(&self.state_dir().join("spool"));
        // A leading dot marks a file that a hook has not finished.
        files.retain(|path| {
            path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
        });
        files
    }

    /// Returns the messages in the maildir of the transport `default`.
    pub fn mails(&self) -> Vec<String> {
        self.mails_of("default")
    }

    /// Returns the messages in the maildir of a transport that has no directory of its own.
    pub fn mails_of(&self, transport: &str) -> Vec<String> {
        let maildir = self.state_dir().join("mail").join(transport);
        files_in(&maildir.join("new"))
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }

    /// Returns the record of builder selection.
    #[track_caller]
    pub fn builder_record(&self) -> Record {
        Record::read(&self.state_dir().join("builders")).unwrap().unwrap()
    }

    /// Returns all builds of the record of builder selection.
    #[track_caller]
    pub fn recorded_builds(&self) -> Vec<BuildRow> {
        self.builder_record().builds(ALL).unwrap()
    }

    /// Returns the last build of the record of builder selection.
    #[track_caller]
    pub fn last_build(&self) -> BuildRow {
        self.builder_record().builds(RowSelection::Last(1)).unwrap().remove(0)
    }

    /// Returns the configuration file and the state directory of this scene.
    pub fn dirs(&self) -> Dirs {
        Dirs { config: self.config_path(), state: self.state_dir() }
    }

    /// Returns the directories of the scene's Nix.
    pub fn nix_dirs(&self) -> NixDirs {
        let nix = self.private_nix();
        NixDirs::new(nix.store_dir(), nix.state_dir(), nix.conf_dir())
    }

    /// Returns the event that the post-build hook spools for a derivation with one output.
    #[track_caller]
    pub fn build_event(&self, derivation: &str) -> Event {
        let (drv_path, output) = self.drv_and_output(derivation);
        self.event(HookEvent::PostBuild(PostBuild { drv_path, outputs: vec![output] }))
    }

    /// Returns the event that the diff hook spools when the file `relative` of the only output
    /// differs in one byte.
    #[track_caller]
    pub fn diff_event(&self, derivation: &str, relative: &str) -> Event {
        let (drv_path, output) = self.drv_and_output(derivation);
        let difference = Difference {
            path: relative.to_owned(),
            kind: "content".to_owned(),
            previous: "prey".to_owned(),
            current: "pray".to_owned(),
            offset: Some(2),
            details: Vec::new(),
        };
        let evidence = Evidence { differences: vec![difference], ..Evidence::default() };
        let (previous, current) = (output.path.clone(), format!("{}.check", output.path));
        self.event(HookEvent::Diff(Diff { drv_path, output, previous, current, evidence }))
    }

    fn drv_and_output(&self, derivation: &str) -> (String, Output) {
        let path = self.out_path(derivation).display().to_string();
        (self.drv_path(derivation).display().to_string(), Output { name: "out".to_owned(), path })
    }

    fn event(&self, hook: HookEvent) -> Event {
        Event { nix: self.nix_dirs(), ..Event::now(hook) }
    }

    /// Returns the processes that have this scene's state directory in their environment.
    pub fn processes(&self) -> Vec<Pid> {
        let marker = format!("HOOKRUN_STATE_DIR={}", self.state_dir().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
                .and_then(Pid::from_raw)
            else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// Returns the logs that explain a failed test.
    pub(super) fn account(&self) -> String {
        let mut text = String::new();
        for (title, path) in [
            ("worker's log", self.state_dir().join("worker.log")),
            ("daemon's log", self.path("daemon.log")),
        ] {
            if let Ok(log) = std::fs::read_to_string(&path) {
                writeln!(text, "--- the {title}\n{}", log.trim_end()).unwrap();
            }
        }
        text
    }
}

/// Returns the highest number of these builds that ran on their machines at the same time. Between
/// the arrival of its inputs and its end a build certainly holds a slot.
pub fn most_at_once(builds: &[&BuildRow]) -> usize {
    let at = |instant: u64| {
        let runs = |build: &&&BuildRow| {
            build.started_ms.unwrap() < instant && instant <= build.ended_ms.unwrap()
        };
        builds.iter().filter(runs).count()
    };
    builds.iter().map(|build| at(build.ended_ms.unwrap())).max().unwrap_or(0)
}

/// Returns the files directly in a directory, sorted. A missing directory has none.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
