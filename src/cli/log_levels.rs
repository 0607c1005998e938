//! `verdict log-levels`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{SetLogLevelsRequest, admin_service_client::AdminServiceClient};

/// Shows which log lines a running server writes, and changes that until it is restarted.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The new levels, by module: "info,verdict::ending=debug". Without, the current ones are shown.
    levels: Option<String>,

    /// Go back to the levels of the server's configuration.
    #[arg(long, conflicts_with = "levels")]
    configured: bool,

    #[command(flatten)]
    server: EndpointArg,

    /// How to print. The default is readable on a terminal and a JSON line in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let levels = match (args.configured, args.levels) {
        (true, _) => Some(String::new()),
        (false, Some(levels)) if levels.trim().is_empty() => {
            let message =
                "the levels are empty; --configured goes back to those of the configuration";
            return Err(CliError::Usage(message.to_owned()));
        }
        (false, levels) => levels,
    };
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let response = client.set_log_levels(SetLogLevelsRequest { levels }).await;
    let response = response.map_err(|status| failure(&status))?.into_inner();
    match Format::or_detect(args.format) {
        Format::Json => {
            let json = output::json(&response)?;
            output::print(json);
        }
        Format::Table => {
            output::print(output::plain(&response.levels));
        }
    }
    Ok(())
}
