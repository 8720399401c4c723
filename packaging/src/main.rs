//! `hostkit-packaging OUT`: writes man pages and completions below a directory.

#![allow(clippy::print_stderr, reason = "a build tool that has no log")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1) else {
        eprintln!("usage: hostkit-packaging OUT");
        return ExitCode::from(2);
    };
    match hostkit_packaging::write(out.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "hostkit-packaging: cannot write below {}: {error}",
                out.display()
            );
            ExitCode::from(73)
        }
    }
}
