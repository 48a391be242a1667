//! The documented exit codes. Every command returns one of these. Hooks that Nix calls always
//! return 0, except for plugins with `gate = true`.

/// A documented exit code of `hookrun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done: 0.
    Done,
    /// The tested or awaited operation failed: 1.
    Failed,
    /// The command line is wrong: 2.
    Usage,
    /// The configuration is wrong: 3.
    Configuration,
    /// The environment is wrong (no Nix, no permission, no space): 4.
    Environment,
    /// A defect of hookrun: 70 (`EX_SOFTWARE` of sysexits.h).
    Internal,
    /// The code of the command that `hookrun ci` ran.
    Command(u8),
}

impl Exit {
    /// Returns the number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Configuration => 3,
            Self::Environment => 4,
            Self::Internal => 70,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
