//! The build hook as a process: descriptors, configuration, session, exit code.
//!
//! Whatever is wrong with the configuration or with hookrun itself, Nix gets its answers.

use std::io::BufReader;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::choice::policy_thread::{DEADLINE, PolicyFactory, PolicyThread};
use crate::run::shutdown::{self, Replies};
use crate::run::stock::InstalledHook;
use crate::run::stock_program::StockProgram;
use crate::session::{End, Session};
use crate::ssh::{self, Sharing};
use hookrun_config::{self as config, Config};
use hookrun_nix::dirs::Dirs;
use hookrun_nix::event::NixDirs;
use hookrun_nix::exit_code::Exit;
use hookrun_nix::process;
use hookrun_nix::selection::PolicyError;

/// What the configuration says about builder selection.
pub struct Setup {
    /// `[builders]`.
    pub builders: config::Builders,
    /// Who chooses; none: Nix's own rule.
    pub policy: Option<PolicyFactory>,
}

impl Setup {
    /// From this installation's configuration; `may_choose` says whether a plugin may be the one
    /// that chooses, and `policy` makes the policy of it, within the policy's deadline. Without one
    /// Nix's own rule chooses.
    pub fn load<C, F>(may_choose: C, policy: F) -> Self
    where
        C: FnOnce(&Config) -> bool,
        F: Fn(&Config) -> Result<Box<dyn super::Policy>, PolicyError> + Send + Sync + 'static,
    {
        let config = match Config::in_force(&Dirs::from_env()) {
            Ok(config) => config,
            Err(error) => {
                let policy: PolicyFactory =
                    Arc::new(move || Err(PolicyError::Unavailable(error.to_string())));
                return Self { builders: config::Builders::default(), policy: Some(policy) };
            }
        };
        let builders = config.builders.clone();
        let policy =
            may_choose(&config).then(|| -> PolicyFactory { Arc::new(move || policy(&config)) });
        Self { builders, policy }
    }
}

/// Plays the build hook that Nix started with this verbosity.
pub fn main(verbosity: u64, setup: impl FnOnce() -> Setup) -> Exit {
    process::reserve();
    shutdown::watch();
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
        let mut stock = InstalledHook {
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
            policy: policy.map(|factory| PolicyThread::new(factory, DEADLINE)),
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
