//! A key as somebody types it or sends it to stdin; never from the command line.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use hostkit::{Exit, Failure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// The longest key (bytes): a longer one fits in no head of a request.
const LIMIT: u64 = 16 << 10;

/// The key, without what stands around it.
///
/// # Errors
/// There is none, it is too long, or it was given as `argument` (exit 2).
pub(super) fn key(argument: Option<&str>) -> Result<Vec<u8>, Failure> {
    if argument.is_some() {
        return Err(Failure::new(
            Exit::USAGE,
            "a key on the command line stays in the shell's history, and everybody on this host can see it",
        )
        .remedy("type it when asked, or send it to stdin; and replace this one"));
    }
    let line = read()
        .map_err(|error| Failure::new(Exit::IO, "cannot read a key from stdin").because(error))?;
    if line.len() as u64 > LIMIT {
        return Err(Failure::new(Exit::USAGE, "no key is longer than 16 KiB"));
    }
    match line.trim_ascii() {
        [] => Err(Failure::new(Exit::USAGE, "there is no key")
            .remedy("type it when asked, or send it to stdin")),
        key => Ok(key.to_vec()),
    }
}

fn read() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let _silent = match stdin.is_terminal() {
        true => Some(Silent::new()?),
        false => None,
    };
    let mut line = Vec::new();
    stdin.lock().take(LIMIT + 1).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// A terminal that does not show what is typed, for as long as this is there.
struct Silent(Termios);

impl Silent {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &silent)?;
        // stdout is for results.
        let _ = io::stderr().write_all(b"Key: ");
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0);
        let _ = io::stderr().write_all(b"\n");
    }
}
