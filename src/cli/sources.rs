//! `verdict sources`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{ListSourcesRequest, SourceInfo, admin_service_client::AdminServiceClient};

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
                let json = output::json(source)?;
                output::print(json);
            }
        }
        Format::Table => {
            let head = format!(
                "{:<24} {:<28} {:>9} {:>9} {:>11} {:>8} {:>9} KEEPS",
                "SOURCE", "SCHEMES", "ACCEPTED", "DUPLICATE", "QUARANTINED", "IGNORED", "REFUSED"
            );
            output::print(output::head(&head));
            for source in &sources {
                output::print(row(source));
            }
        }
    }
    Ok(())
}

fn row(source: &SourceInfo) -> String {
    let name = format!("{}/{}", source.provider, source.account);
    let schemes = source.signature_schemes.join(" ");
    let (name, schemes) = (output::plain(&name), output::plain(&schemes));
    let counts = source.counts.unwrap_or_default();
    // What a source does with deliveries that are not genuine.
    let keeps = match source.keep_unverified {
        true => "unverified",
        false => "",
    };
    let row = format!(
        "{name:<24} {schemes:<28} {:>9} {:>9} {:>11} {:>8} {:>9} {keeps}",
        counts.accepted,
        counts.duplicate,
        counts.quarantined,
        counts.ignored,
        counts.signature_invalid
    );
    row.trim_end().to_owned()
}
