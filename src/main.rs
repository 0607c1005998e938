//! The `verdict` command. See [`verdict::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    verdict::cli::main()
}
