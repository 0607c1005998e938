//! `verdict keys`

use std::io;

use clap::Subcommand;

use super::{CliError, output};
use crate::log::embedded::new_master_key;

/// Makes keys.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    New(NewArgs),
}

/// Prints a new line for a file of master keys (log.encryption.master_key_file).
///
/// Put it before the lines that are there, into a file that nobody else may read (mode 0600). A running server takes the
/// new key within seconds and wraps all others with it; `verdict status` tells when the old line can go.
#[derive(Debug, clap::Args)]
struct NewArgs {}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::New(NewArgs {}) => {
            let line = new_master_key()
                .map_err(|_| CliError::failed(io::Error::other("there is no randomness")))?;
            output::print(line.as_str());
            Ok(())
        }
    }
}
