//! The program `synapse`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostkit::cli::main(|args: synapse::Args, _| synapse::run(args))
}
