//! The program `log-healthcheck`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: log_healthcheck::Args, _| log_healthcheck::run(&args))
}
