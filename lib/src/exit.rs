//! Exit codes: `sysexits.h`, but 2 for usage as in clap.

/// The exit code of a tool. The codes are an interface: job templates and deploy scripts branch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit(u8);

impl Exit {
    /// Success.
    pub const OK: Self = Self(0);
    /// A failure without a more specific code.
    pub const FAILED: Self = Self(1);
    /// Invalid command line.
    pub const USAGE: Self = Self(2);
    /// Corrupt data: wrong checksum, invalid archive (`EX_DATAERR`).
    pub const CORRUPT: Self = Self(65);
    /// The requested object does not exist (`EX_NOINPUT`).
    pub const NOT_FOUND: Self = Self(66);
    /// A service is unreachable or responded unexpectedly (`EX_UNAVAILABLE`).
    pub const UNAVAILABLE: Self = Self(69);
    /// Cannot create an output: disk full, permission denied, path in use (`EX_CANTCREAT`).
    pub const CANNOT_CREATE: Self = Self(73);
    /// Cannot read or write (`EX_IOERR`).
    pub const IO: Self = Self(74);
    /// Temporary failure; the same call may succeed later (`EX_TEMPFAIL`).
    pub const TRY_AGAIN: Self = Self(75);
    /// Missing, wrong or insufficient credentials (`EX_NOPERM`).
    pub const DENIED: Self = Self(77);
    /// Invalid configuration (`EX_CONFIG`).
    pub const CONFIG: Self = Self(78);
    /// env(1): the launcher itself failed.
    pub const LAUNCHER_FAILED: Self = Self(125);
    /// env(1): the program was found but cannot be executed.
    pub const NOT_EXECUTABLE: Self = Self(126);
    /// env(1): the program does not exist.
    pub const NO_SUCH_PROGRAM: Self = Self(127);

    /// The number passed to the parent process.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The exit code with this number, as another process of the same tool recorded it.
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
