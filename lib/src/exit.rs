//! Exit codes: `sysexits.h`, but 2 for usage as clap has it. Owns the numbers, not the process.

/// How a tool ends. The codes are an interface: job templates and deploy scripts branch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// Everything asked for was done.
    pub const OK: Self = Self(0);
    /// It failed in a way no other code names.
    pub const FAILED: Self = Self(1);
    /// The command line is wrong.
    pub const USAGE: Self = Self(2);
    /// Data is corrupt: a checksum differs, an archive is not one (`EX_DATAERR`).
    pub const CORRUPT: Self = Self(65);
    /// The object asked for does not exist (`EX_NOINPUT`).
    pub const NOT_FOUND: Self = Self(66);
    /// A service could not be reached or did not answer as it should (`EX_UNAVAILABLE`).
    pub const UNAVAILABLE: Self = Self(69);
    /// An output could not be created: disk full, no permission, something is in the way (`EX_CANTCREAT`).
    pub const CANNOT_CREATE: Self = Self(73);
    /// Reading or writing failed (`EX_IOERR`).
    pub const IO: Self = Self(74);
    /// Not now; the same call may succeed later (`EX_TEMPFAIL`).
    pub const TRY_AGAIN: Self = Self(75);
    /// Credentials are missing, wrong or not enough (`EX_NOPERM`).
    pub const DENIED: Self = Self(77);
    /// A configuration file is wrong (`EX_CONFIG`).
    pub const CONFIG: Self = Self(78);
    /// env(1): the launcher itself failed.
    pub const LAUNCHER_FAILED: Self = Self(125);
    /// env(1): the program was found but cannot be executed.
    pub const NOT_EXECUTABLE: Self = Self(126);
    /// env(1): there is no such program.
    pub const NO_SUCH_PROGRAM: Self = Self(127);

    /// The number handed to the parent process.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The code with this number, as recorded by another process of the same tool.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        Self(code)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}
