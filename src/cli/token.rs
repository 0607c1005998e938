//! `verdict token`

use clap::Subcommand;

use super::CliError;
use crate::caller::NewToken;

/// Makes bearer tokens for callers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a token of 256 random bits.
    ///
    /// The token goes to standard output, for its caller; verdict keeps it nowhere. The line for the configuration goes to
    /// standard error. So `verdict token new > token` leaves the token in a file and shows what to configure.
    New {
        /// What the configuration is to call the token.
        #[arg(long, default_value = "1")]
        id: String,
    },
}

pub(super) fn run(Args { command }: Args) -> Result<(), CliError> {
    let Command::New { id } = command;
    let token = NewToken::random()
        .map_err(|_| CliError::Failed("the system gives no random numbers".to_owned()))?;
    anstream::println!("{}", token.expose());
    let id = serde_json::Value::from(id);
    anstream::eprintln!(
        "for [[callers]]: tokens = [{{ id = {id}, sha256 = \"{}\" }}]",
        token.hash()
    );
    Ok(())
}
