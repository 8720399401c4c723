//! The program `pexrun`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: pexrun::Args, matches| pexrun::run(args, matches))
}
