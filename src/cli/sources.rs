//! `verdict sources`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{ListSourcesRequest, SourceInfo, admin_service_client::AdminServiceClient};

/// Lists the sources of a running server, with how their deliveries have ended since it started.
///
/// And their secrets and decryption keys: since when verdict has each, and which delivery needed it last. One that none has
/// needed for longer than the provider redelivers can be retired.
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
            output::print("");
            output::print(secret_head());
            for source in &sources {
                for row in secret_rows(source) {
                    output::print(row);
                }
            }
        }
    }
    Ok(())
}

fn secret_head() -> String {
    output::head(&format!(
        "{:<24} {:<28} {:<20} {:<20} {:>9}",
        "SOURCE", "SECRET", "SINCE", "LAST USED", "USES"
    ))
}

/// The secrets of a source, then its decryption keys.
fn secret_rows(source: &SourceInfo) -> impl Iterator<Item = String> {
    let name = output::plain(&name(source));
    let secrets = source.secrets.iter().map(|secret| (secret, ""));
    let keys = source.decryption_keys.iter();
    let keys = keys.map(|key| (key, " (decryption key)"));
    secrets.chain(keys).map(move |(secret, kind)| {
        let id = format!("{}{kind}", output::plain(&secret.id));
        let last_used = match secret.last_used_at {
            Some(_) => output::time(secret.last_used_at),
            None => "not since the start".to_owned(),
        };
        let since = output::time(secret.loaded_at);
        let uses = secret.uses;
        format!("{name:<24} {id:<28} {since:<20} {last_used:<20} {uses:>9}")
    })
}

fn name(source: &SourceInfo) -> String {
    format!("{}/{}", source.provider, source.account)
}

fn row(source: &SourceInfo) -> String {
    let name = name(source);
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
