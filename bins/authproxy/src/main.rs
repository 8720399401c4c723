//! The program `authproxy`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: authproxy::Args, matches| authproxy::run(args, matches))
}
