//! The `verdict` command. See [`verdict::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// What one thread allocates another one frees, all the time: the threads of the runtime and the log's writer. That is where
/// glibc's allocator has its locks.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    verdict::cli::main()
}
