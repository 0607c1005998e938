//! `verdict sources`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::Format,
};
use crate::{
    event,
    proto::{ListSourcesRequest, SourceInfo, admin_service_client::AdminServiceClient},
};

/// Lists the sources of a running server, with how their deliveries have ended since it started.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: EndpointArg,

    /// How to print. The default is a table on a terminal and JSON lines in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let response = client
        .list_sources(ListSourcesRequest {})
        .await
        .map_err(|status| failure(&status))?;
    let sources = response.into_inner().sources;
    match Format::or_detect(args.format) {
        Format::Json => {
            for source in &sources {
                let json = event::to_json(source).map_err(CliError::failed)?;
                anstream::println!("{json}");
            }
        }
        Format::Table => {
            anstream::println!(
                "{:<24} {:<28} {:>9} {:>9} {:>11} {:>8} {:>9}",
                "SOURCE",
                "SCHEMES",
                "ACCEPTED",
                "DUPLICATE",
                "QUARANTINED",
                "IGNORED",
                "REFUSED"
            );
            for source in &sources {
                anstream::println!("{}", row(source));
            }
        }
    }
    Ok(())
}

fn row(source: &SourceInfo) -> String {
    let name = format!("{}/{}", source.provider, source.account);
    let schemes = source.signature_schemes.join(" ");
    let counts = source.counts.unwrap_or_default();
    format!(
        "{name:<24} {schemes:<28} {:>9} {:>9} {:>11} {:>8} {:>9}",
        counts.accepted,
        counts.duplicate,
        counts.quarantined,
        counts.ignored,
        counts.signature_invalid
    )
}
