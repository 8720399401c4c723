//! The program `authproxy`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Returns the memory of a burst of connections to the system within seconds. glibc's allocator keeps it, because small
/// blocks that are still in use pin the free memory between them.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    hostkit::cli::main(|args: authproxy::Args, matches| authproxy::run(args, matches))
}
