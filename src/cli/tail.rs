//! `verdict tail`

use std::time::Duration;

use prost::Message;
use tokio::time;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    CliError,
    client::{Connection, EndpointArg, failure, reason},
    filter::FilterArgs,
    output::{self, Format},
};
use crate::{
    error,
    proto::{
        Committed, Earliest, Latest, SubscribeMessage, SubscribeRequest, SubscribeResponse,
        VerificationEvent, subscribe_request::Start, verdict_service_client::VerdictServiceClient,
    },
};

/// Follows the stream of events.
///
/// Prints a table on a terminal and JSON lines in a pipe. When the server goes away, it connects again and goes on
/// after the last event, without a gap.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to start: earliest, latest, after a cursor that an earlier line carried, or where --consumer has committed.
    #[arg(
        long,
        default_value = "latest",
        value_name = "earliest|latest|committed|CURSOR"
    )]
    from: String,

    /// The name of the consumer whose cursor to start after, with --from committed. Nothing is committed.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,

    /// Start at the first event that was received at this time or later, for example 2026-05-04T10:00:00Z.
    #[arg(long, conflicts_with = "from", value_name = "TIME")]
    since: Option<jiff::Timestamp>,

    #[command(flatten)]
    filter: FilterArgs,

    /// Also show personal data (JSON only).
    #[arg(long)]
    personal_data: bool,

    /// End when every event that is in the log now has been printed.
    #[arg(long)]
    until_caught_up: bool,

    /// How to print.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    server: EndpointArg,
}

/// How long to wait before the first try to connect again; doubled with each one that fails.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(10);

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let format = Format::or_detect(args.format);
    let server = args.server.clone();
    if args.from == "committed" && args.consumer.is_none() {
        let message = "--from committed needs the name of a consumer: --consumer";
        return Err(CliError::Usage(message.to_owned()));
    }
    let mut request = request(args);
    let mut channel = server.connect().await?;
    if format == Format::Table {
        output::print(output::event_head());
    }
    let mut delay = FIRST_DELAY;
    loop {
        let before = request.start.clone();
        match follow(VerdictServiceClient::new(channel), &mut request, format).await {
            Ok(()) => return Ok(()),
            Err(status) if is_lost(&status) => {
                anstream::eprintln!("connection lost, connecting again");
            }
            Err(status) => return Err(ended(&status)),
        }
        if request.start != before {
            delay = FIRST_DELAY;
        }
        channel = loop {
            time::sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
            if let Ok(channel) = server.connect().await {
                break channel;
            }
        };
    }
}

/// Whether to connect again: the connection broke, or the server goes away. A log in trouble is something else.
fn is_lost(status: &Status) -> bool {
    match reason(status) {
        Some(reason) => reason == error::Code::Draining.reason(),
        None => matches!(status.code(), Code::Unavailable | Code::Unknown),
    }
}

/// Why the stream ended, and what to do if it began at a place that is not there.
fn ended(status: &Status) -> CliError {
    let failure = failure(status);
    let first = status
        .get_details_error_info()
        .and_then(|mut info| info.metadata.remove("first_available"));
    match first {
        Some(first) => CliError::Failed(format!(
            "{failure}; the first cursor that there is: --from {first}"
        )),
        None => failure,
    }
}

/// Prints until the stream ends, and keeps in `request` where to go on.
async fn follow(
    mut client: VerdictServiceClient<Connection>,
    request: &mut SubscribeRequest,
    format: Format,
) -> Result<(), Status> {
    let mut stream = client.subscribe(request.clone()).await?.into_inner();
    while let Some(response) = stream.message().await? {
        if let Some(line) = line(&response, format)?
            && !output::print(line)
        {
            return Ok(());
        }
        request.start = Some(Start::AfterCursor(response.cursor));
    }
    Ok(())
}

/// How an event is printed; `None` for any other message.
fn line(response: &SubscribeResponse, format: Format) -> Result<Option<String>, Status> {
    let Some(SubscribeMessage::Event(event)) = &response.message else {
        return Ok(None);
    };
    let unreadable = |error: &dyn std::fmt::Display| Status::data_loss(error.to_string());
    Ok(Some(match format {
        Format::Json => output::json(response).map_err(|error| unreadable(&error))?,
        Format::Table => {
            let event =
                VerificationEvent::decode(event.clone()).map_err(|error| unreadable(&error))?;
            output::event_row(&event)
        }
    }))
}

fn request(args: Args) -> SubscribeRequest {
    let start = match (&args.since, args.from.as_str()) {
        (Some(since), _) => Start::Since(crate::ingest::proto_timestamp(*since)),
        (None, "earliest") => Start::Earliest(Earliest {}),
        (None, "latest") => Start::Latest(Latest {}),
        (None, "committed") => Start::Committed(Committed {}),
        (None, cursor) => Start::AfterCursor(cursor.to_owned()),
    };
    SubscribeRequest {
        start: Some(start),
        filter: Some(args.filter.into()),
        consumer: args.consumer.unwrap_or_else(|| "verdict-tail".to_owned()),
        include_personal_data: args.personal_data,
        stop_when_caught_up: args.until_caught_up,
        heartbeat_interval: None,
    }
}
