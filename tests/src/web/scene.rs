//! One run of the guest `web`, which sends the requests that its configuration names, with the real
//! sender.

use hookrun_capability::Services;
use hookrun_config::Config;
use hookrun_host::{Compiler, Host};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::{Event, HookEvent, Output, PostBuild};
use hookrun_nix::outcome::{Outcome, RunReport};

use crate::guests::guest;

/// A place for a configuration with one plugin `x`, the guest `web`.
pub struct Scene {
    /// Where files of a test may be.
    pub directory: tempfile::TempDir,
    /// Where hookrun has its own.
    pub dirs: Dirs,
}

/// What became of the requests.
pub struct Done {
    /// The run.
    pub report: RunReport,
    file: String,
}

impl Done {
    /// The answers the guest had.
    pub fn answers(&self) -> Vec<String> {
        match &self.report.outcome {
            Outcome::Done { details, .. } => {
                details.iter().map(|(_, value)| self.shown(value)).collect()
            }
            other => panic!("the run did not end well: {other:?} {:?}", self.report.log),
        }
    }

    /// The only answer.
    pub fn answer(&self) -> String {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// What the log of the run says, the configuration's file left out.
    pub fn log(&self) -> String {
        let lines: Vec<String> =
            self.report.log.iter().map(|line| self.shown(&line.message)).collect();
        lines.join("\n")
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.file, "FILE")
    }

    /// Everything that anybody can read of this run.
    pub fn everything(&self) -> String {
        format!("{:?}", self.report)
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// An empty one.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let dirs = Dirs { config: root.join("hookrun.toml"), state: root.join("state") };
        Self { directory, dirs }
    }

    /// A configuration whose plugin `x` sends `requests` (a TOML list); `rest` has its grants and
    /// whatever else.
    pub fn config(&self, requests: &str, rest: &str) -> Config {
        let source = guest("web").unwrap();
        let text = format!(
            "[plugins.x]\nsource = \"{}\"\n[plugins.x.config]\nrequests = [{requests}]\n{rest}\n",
            source.display()
        );
        Config::parse(&self.dirs.config, &text).unwrap()
    }

    /// Runs it with the services of an installation.
    pub async fn run(&self, requests: &str, rest: &str) -> Done {
        let config = self.config(requests, rest);
        let services = Services::new(&config, &self.dirs);
        self.run_with(&config, services).await
    }

    /// Runs it with these services.
    pub async fn run_with(&self, config: &Config, services: Services) -> Done {
        let plugin = Host::new(&self.dirs, Compiler::InProcess)
            .load(config.plugins.get("x").unwrap(), config)
            .unwrap();
        let report = plugin.run_event(&services, &built(), 1).await;
        Done { report, file: self.dirs.config.display().to_string() }
    }
}

/// What the run is about.
fn built() -> Event {
    let outputs = vec![Output {
        name: "out".to_owned(),
        path: "/nix/store/10bgd045z0d4icpbc2yyz4gx48ak44la-x".to_owned(),
    }];
    let drv_path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-x.drv".to_owned();
    Event::now(HookEvent::PostBuild(PostBuild { drv_path, outputs }))
}

/// A grant; `rest` are more lines of its table.
pub fn grant(url: &str, rest: &str) -> String {
    format!("[[plugins.x.grant.http]]\nurl = \"{url}\"\n{rest}\n")
}

/// A GET request, as the guest's configuration has it.
pub fn get(url: &str) -> String {
    format!("{{ url = \"{url}\" }}")
}
