//! The program `authproxy`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// What a burst of connections took goes back to the system within seconds. glibc keeps it: small pieces that are still in
/// use lie between what is free.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    hostkit::cli::main(|args: authproxy::Args, matches| authproxy::run(args, matches))
}
