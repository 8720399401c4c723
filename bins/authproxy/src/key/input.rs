//! Reads a key from the prompt or from stdin, never from the command line.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use hostkit::{Exit, Failure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// A longer key would not fit in the head of a request.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Reads a key without the white space around it.
///
/// # Errors
/// It is missing, too long, or was given as `argument` (exit 2).
pub(super) fn read_key(argument: Option<&str>) -> Result<Vec<u8>, Failure> {
    if argument.is_some() {
        return Err(Failure::new(
            Exit::USAGE,
            "cannot take a key from the command line: shell history and process list show it",
        )
        .remedy("type it at the prompt, or pipe it to stdin; and replace this key"));
    }
    let line = read_line()
        .map_err(|error| Failure::new(Exit::IO, "cannot read a key from stdin").because(error))?;
    if line.len() as u64 > MAX_KEY_BYTES {
        let message = "invalid key: longer than 16 KiB";
        return Err(Failure::new(Exit::USAGE, message));
    }
    match line.trim_ascii() {
        [] => Err(Failure::new(Exit::USAGE, "missing key")
            .remedy("type it at the prompt, or pipe it to stdin")),
        key => Ok(key.to_vec()),
    }
}

fn read_line() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let _no_echo = match stdin.is_terminal() {
        true => Some(EchoGuard::new()?),
        false => None,
    };
    let mut line = Vec::new();
    stdin
        .lock()
        .take(MAX_KEY_BYTES + 1)
        .read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Disables the echo of the terminal until it is dropped.
struct EchoGuard(Termios);

impl EchoGuard {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut no_echo = before.clone();
        no_echo.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &no_echo)?;
        // stdout is for results.
        let _ = io::stderr().write_all(b"Key: ");
        Ok(Self(before))
    }
}

impl Drop for EchoGuard {
    fn drop(&mut self) {
        // An error means that the terminal is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0);
        let _ = io::stderr().write_all(b"\n");
    }
}
