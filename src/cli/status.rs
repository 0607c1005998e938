//! `verdict status`

use super::{
    CliError,
    client::{EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{
    ConsumerStatus, EncryptionStatus, GetStatusRequest, GetStatusResponse, QuarantineStatus,
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
        format!("encryption  {}", encryption(log.encryption)),
        format!("quarantine  {}", quarantine(status.quarantine)),
        format!("unverified  {}", quarantine(status.unverified)),
    ];
    if !status.refused_callers.is_empty() {
        let mut refused: Vec<_> = status.refused_callers.iter().collect();
        refused.sort();
        let refused = refused
            .iter()
            .map(|(why, count)| format!("{count} {}", output::plain(why)));
        let refused: Vec<_> = refused.collect();
        lines.push(format!("refused     {}", refused.join(", ")));
    }
    if !status.consumers.is_empty() {
        lines.extend([String::new(), consumer_head()]);
        lines.extend(status.consumers.iter().map(consumer_row));
    }
    lines.join("\n")
}

fn encryption(status: Option<EncryptionStatus>) -> String {
    let Some(status) = status else {
        return "none: the log is in memory".to_owned();
    };
    let mut text = match status.enabled {
        true => format!("master key {}", output::plain(&status.master_key_id)),
        false => "OFF".to_owned(),
    };
    if status.segments_to_rewrap > 0 {
        let (waiting, all) = (status.segments_to_rewrap, status.key_files);
        text += &format!("; {waiting} of {all} key files need an older one still");
    }
    if status.segments_without_keys > 0 {
        text += &format!(
            "; THE KEYS OF {} SEGMENTS ARE GONE",
            status.segments_without_keys
        );
    }
    text
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
