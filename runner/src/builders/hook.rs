//! The build hook as a process: descriptors, configuration, session, exit code.
//!
//! Whatever is wrong with the configuration or with hookrun itself, Nix gets its answers.

use std::io::BufReader;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::asker::{Asker, DEADLINE, PolicyFactory};
use super::ending::{self, Replies};
use super::fds;
use super::policy::PolicyError;
use super::program::StockProgram;
use super::session::{End, Session};
use super::ssh::{self, Sharing};
use super::stock::Delegate;
use crate::config::{self, Config};
use crate::dirs::Dirs;
use crate::event::NixDirs;
use crate::exit_code::Exit;

/// What the configuration says about builder selection.
pub struct Setup {
    /// `[builders]`.
    pub builders: config::Builders,
    /// Who chooses; none: Nix's own rule.
    pub policy: Option<PolicyFactory>,
}

impl Setup {
    /// From this installation's configuration; `chooser` names the plugin that chooses, if there is
    /// one, and `plugin` makes its policy. Without one Nix's own rule chooses.
    pub fn load<C, F>(chooser: C, plugin: F) -> Self
    where
        C: FnOnce(&Config) -> Option<String> + Send + 'static,
        F: Fn(&Config, &str) -> Result<Box<dyn super::Policy>, PolicyError> + Send + Sync + 'static,
    {
        let config = match Config::load(&Dirs::from_env().config) {
            Ok(config) => config,
            Err(error) => {
                let policy: PolicyFactory =
                    Arc::new(move || Err(PolicyError::Unavailable(error.to_string())));
                return Self { builders: config::Builders::default(), policy: Some(policy) };
            }
        };
        let builders = config.builders.clone();
        let config = Arc::new(config);
        let chosen = {
            let config = Arc::clone(&config);
            within(DEADLINE, move || chooser(&config))
        };
        let policy = match chosen {
            Some(name) => {
                name.map(|name| -> PolicyFactory { Arc::new(move || plugin(&config, &name)) })
            }
            None => Some(Arc::new(|| Err(no_chooser())) as PolicyFactory),
        };
        Self { builders, policy }
    }
}

fn no_chooser() -> PolicyError {
    PolicyError::Unavailable(format!(
        "the plugins could not be looked at within {DEADLINE:?}; write `hooks = [...]` into the \
         table of each plugin, so that only the one that chooses is opened"
    ))
}

/// What `act` returns, on a thread of its own; `None`: it took longer, or panicked. A plugin is a
/// stranger's file, and Nix is blocked until it is known whether it chooses.
fn within<T: Send + 'static>(
    patience: Duration,
    act: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (result, done) = mpsc::channel();
    let body = move || {
        let _nobody_waits = result.send(act());
    };
    std::thread::Builder::new().name("plugins".to_owned()).spawn(body).ok()?;
    done.recv_timeout(patience).ok()
}

/// Plays the build hook that Nix started with this verbosity.
pub fn main(verbosity: u64, setup: impl FnOnce() -> Setup) -> Exit {
    fds::reserve();
    ending::watch();
    let Setup { builders, policy } =
        catch_unwind(AssertUnwindSafe(setup)).unwrap_or_else(|_| Setup {
            builders: config::Builders::default(),
            policy: Some(Arc::new(|| {
                Err(PolicyError::Unavailable(
                    "reading the configuration panicked, a defect of hookrun".to_owned(),
                ))
            })),
        });
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let dirs = Dirs::from_env();
        let mut stock = Delegate {
            program: StockProgram::of_caller(verbosity),
            deadline: builders.connect_timeout,
            variables: ssh::variables(&builders),
            sharing: Sharing::prepare(&builders, &dirs),
        };
        let nix = std::io::stderr();
        let session = Session {
            input: BufReader::new(std::io::stdin().lock()),
            reply: Replies,
            nix: nix.as_fd(),
            stock: &mut stock,
            policy: policy.map(|factory| Asker::new(factory, DEADLINE)),
            nix_dirs: NixDirs::from_env(),
            builders: dirs.builders(),
            options: builders,
        };
        session.run()
    }));
    match ended {
        Ok(End::Closed | End::Built(0)) => Exit::Done,
        // After a panic the question, if there was one, is answered; if a build was running, it is
        // lost.
        Ok(End::Built(1)) | Err(_) => Exit::Failed,
        // Up to Nix 2.28 the code of a build hook has a meaning (100 permanent failure, 101
        // time-out): it is passed on.
        Ok(End::Built(code)) => std::process::exit(i32::from(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_that_cannot_be_looked_at_in_time_are_not_waited_for() {
        let hang = || -> u32 {
            loop {
                std::thread::park();
            }
        };
        assert_eq!(within(Duration::from_millis(20), hang), None);
        assert_eq!(within(Duration::from_mins(1), || 5), Some(5));
        assert_eq!(within(Duration::from_mins(1), || -> u32 { panic!("defect") }), None);
    }
}
