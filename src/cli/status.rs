//! `verdict status`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{
    ConsumerStatus, GetStatusRequest, GetStatusResponse, QuarantineStatus,
    admin_service_client::AdminServiceClient,
};

/// Tells how a running server is: what its log holds, how far each consumer lags, how full the quarantines are.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: EndpointArg,

    /// How to print. The default is readable on a terminal and a JSON line in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let response = client
        .get_status(GetStatusRequest {})
        .await
        .map_err(|status| failure(&status))?
        .into_inner();
    match Format::or_detect(args.format) {
        Format::Json => {
            let json = output::json(&response)?;
            output::print(json);
        }
        Format::Table => {
            output::print(table(response));
        }
    }
    Ok(())
}

fn table(status: GetStatusResponse) -> String {
    let log = status.log.unwrap_or_default();
    let trouble = match log.trouble.as_str() {
        "" => "it can write".to_owned(),
        why => format!("IT CANNOT WRITE: {}", output::plain(why)),
    };
    let mut lines = vec![
        format!(
            "verdict {}, running since {}",
            output::plain(&status.version),
            output::time(status.started_at)
        ),
        format!(
            "log         {} events, {}, format {}; {trouble}",
            log.events,
            output::size(log.size_bytes),
            log.format
        ),
        format!(
            "cursors     {} to {}",
            output::plain(&log.first_cursor),
            output::plain(&log.last_cursor)
        ),
        format!("quarantine  {}", quarantine(status.quarantine)),
        format!("unverified  {}", quarantine(status.unverified)),
    ];
    if !status.consumers.is_empty() {
        lines.extend([String::new(), consumer_head()]);
        lines.extend(status.consumers.iter().map(consumer_row));
    }
    lines.join("\n")
}

fn quarantine(status: Option<QuarantineStatus>) -> String {
    let status = status.unwrap_or_default();
    format!(
        "{} deliveries, {}; {} dropped since the start",
        status.deliveries,
        output::size(status.size_bytes),
        status.dropped
    )
}

/// The head of the table of consumers.
pub(super) fn consumer_head() -> String {
    output::head(&format!("{:<36} {:>12} COMMITTED", "CONSUMER", "LAG"))
}

/// The row of a consumer.
pub(super) fn consumer_row(consumer: &ConsumerStatus) -> String {
    format!(
        "{:<36} {:>12} {}",
        output::clip(&consumer.consumer),
        consumer.lag_events,
        output::time(consumer.committed_at)
    )
}
