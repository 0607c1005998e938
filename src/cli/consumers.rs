//! `verdict consumers`

use clap::Subcommand;

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
    status,
};
use crate::proto::{
    DeleteConsumerRequest, GetStatusRequest, admin_service_client::AdminServiceClient,
};

/// Shows who commits cursors, and forgets those that have gone.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArgs),
    Delete(DeleteArgs),
}

/// Lists the consumers, with how far each lags.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// How to print. The default is a table on a terminal and JSON lines in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    server: EndpointArg,
}

/// Forgets consumers and the cursors that they have committed. Success for those that are not known.
#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// The names of the consumers.
    #[arg(required = true)]
    names: Vec<String>,

    #[command(flatten)]
    server: EndpointArg,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::List(args) => list(args).await,
        Command::Delete(args) => delete(args).await,
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let status = client.get_status(GetStatusRequest {}).await;
    let status = status.map_err(|status| failure(&status))?.into_inner();
    let format = Format::or_detect(args.format);
    if format == Format::Table {
        output::print(status::consumer_head());
    }
    for consumer in &status.consumers {
        let line = match format {
            Format::Json => output::json(consumer)?,
            Format::Table => status::consumer_row(consumer),
        };
        if !output::print(line) {
            break;
        }
    }
    Ok(())
}

async fn delete(args: DeleteArgs) -> Result<(), CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    for consumer in args.names {
        let request = DeleteConsumerRequest { consumer };
        let deleted = client.delete_consumer(request).await;
        deleted.map_err(|status| failure(&status))?;
    }
    Ok(())
}
