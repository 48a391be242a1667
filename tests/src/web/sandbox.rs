//! One run of the guest `web`, which sends the requests that its configuration names, with the real
//! sender.

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, Output, PostBuild};
use hookrun_nix::outcome::{Outcome, RunReport};
use toml::Table;

use crate::lab::{ConfigFile, PluginTable, toml};

/// A directory for a configuration with one plugin `x`, the guest `web`.
pub struct WebSandbox {
    /// The directory for files of the test.
    pub directory: tempfile::TempDir,
    /// The configuration file and the state directory.
    pub dirs: Dirs,
}

/// The run of a plugin that sent requests.
pub struct Done {
    /// The report of the run.
    pub report: RunReport,
    file: String,
}

impl Done {
    /// Returns the answers that the guest received.
    pub fn answers(&self) -> Vec<String> {
        match &self.report.outcome {
            Outcome::Done { details, .. } => {
                details.iter().map(|(_, value)| self.shown(value)).collect()
            }
            other => panic!("the run did not end well: {other:?} {:?}", self.report.log),
        }
    }

    /// Returns the only answer.
    pub fn answer(&self) -> String {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// Returns the log of the run, with the path of the configuration replaced by a word.
    pub fn log(&self) -> String {
        let lines: Vec<String> =
            self.report.log.iter().map(|line| self.shown(&line.message)).collect();
        lines.join("\n")
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.file, "FILE")
    }

    /// Returns all text of this run that users can read.
    pub fn everything(&self) -> String {
        format!("{:?}", self.report)
    }
}

impl Default for WebSandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl WebSandbox {
    /// Makes an empty sandbox.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        Self { directory, dirs }
    }

    /// Parses a configuration. A [`PluginTable`] alone is the plugin `x`.
    pub fn config(&self, file: impl Into<ConfigFile>) -> Config {
        Config::parse(&self.dirs.config, &file.into().to_string()).unwrap()
    }

    /// Runs the plugin `x` with the services of an installation.
    pub async fn run(&self, file: impl Into<ConfigFile>) -> Done {
        let config = self.config(file);
        let services = Services::new(&config, &self.dirs);
        self.run_with(&config, services).await
    }

    /// Runs the plugin `x` with these services.
    pub async fn run_with(&self, config: &Config, services: Services) -> Done {
        let plugin = Host::new(&self.dirs, Compiler::InProcess)
            .load(config.plugins.get("x").unwrap(), config)
            .unwrap();
        let report = plugin.run_event(&services, &built(), 1).await;
        Done { report, file: self.dirs.config.display().to_string() }
    }
}

/// Returns the event of each run.
fn built() -> Event {
    let outputs = vec![Output {
        name: "out".to_owned(),
        path: "/nix/store/10bgd045z0d4icpbc2yyz4gx48ak44la-x".to_owned(),
    }];
    let drv_path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x.drv".to_owned();
    Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs }))
}

/// Returns a plugin that sends these requests.
pub fn sends(requests: impl Into<Vec<Table>>) -> PluginTable {
    let requests = requests.into();
    PluginTable::guest("web").config(toml! { requests = requests })
}

/// Returns a GET request.
pub fn get(url: &str) -> Table {
    toml! { url = url }
}

/// Returns a POST request with other keys of its table.
pub fn post(url: &str, more: Table) -> Table {
    let mut request = toml! { method = "POST" url = url };
    request.extend(more);
    request
}
