//! The program `s3cache`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: s3cache::Args, matches| s3cache::run(args, matches))
}
