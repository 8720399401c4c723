//! The program `proxy-healthcheck`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: proxy_healthcheck::Args, _| proxy_healthcheck::run(args))
}
