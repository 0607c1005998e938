//! The `verdict` command. See [`verdict::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    verdict::cli::main()
}
