//! The documented exit codes. Every command returns one of these; hooks that Nix calls return 0 whatever happens (a
//! `gate` plugin excepted).

/// A documented exit code of `hookrun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The thing tested or awaited failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong.
    Configuration = 3,
    /// The environment is: no Nix, no permission, no space.
    Environment = 4,
    /// A defect of hookrun (`EX_SOFTWARE` of sysexits.h).
    Internal = 70,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
