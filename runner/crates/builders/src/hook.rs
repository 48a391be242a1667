//! The build hook as a process: descriptors, configuration, session, exit code.
//!
//! Nix gets its answers even if the configuration is not valid or hookrun has a defect.

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

/// The configuration of builder selection.
pub struct SelectionSetup {
    /// `[builders]`.
    pub builders: config::Builders,
    /// Creates the policy; none if Nix's own rule chooses.
    pub policy: Option<PolicyFactory>,
}

impl SelectionSetup {
    /// Reads the configuration of this installation. `may_choose` returns whether a plugin may be
    /// the policy, and `policy` creates it, within the policy's deadline. Without a policy, Nix's
    /// own rule chooses.
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

/// Runs as the build hook that Nix started with this verbosity.
pub fn main(verbosity: u64, setup: impl FnOnce() -> SelectionSetup) -> Exit {
    process::reserve();
    shutdown::watch();
    let SelectionSetup { builders, policy } =
        catch_unwind(AssertUnwindSafe(setup)).unwrap_or_else(|_| SelectionSetup {
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
        // After a panic an open question is answered, and a running build fails.
        Ok(End::Built(1)) | Err(_) => Exit::Failed,
        // Up to Nix 2.28 the exit code of a build hook has a meaning (100: permanent failure, 101:
        // timeout), so it is passed on.
        Ok(End::Built(code)) => std::process::exit(i32::from(code)),
    }
}
