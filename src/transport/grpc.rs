//! `verdict.v1.VerdictService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use prost::Message as _;
use prost_types::Timestamp;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{Place, Shared, status};
use crate::{
    config::DEFAULT_ACCOUNT,
    error::Code,
    filter::Filter,
    ingest::{EventPlace, Outcome},
    log::{Cursor, Position, StoredEvent},
    proto::{
        CaughtUp, Draining, FellBehind, GetEventRequest, GetEventResponse, Heartbeat,
        IngestRequest, IngestResponse, IngestStatus, SubscribeMessage, SubscribeRequest,
        SubscribeResponse, TraceContext, VerificationEvent, subscribe_request::Start,
        verdict_service_server::VerdictService,
    },
    provider::RawWebhook,
    subscription::{Message, Options, Subscription},
};

/// The service.
pub(super) struct Verdict(pub(super) Shared);

#[tonic::async_trait]
impl VerdictService for Verdict {
    async fn ingest(
        &self,
        request: Request<IngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        #[expect(clippy::disallowed_methods, reason = "the clock of the transport")]
        let received_at = jiff::Timestamp::now();
        let shared = &self.0;
        let trace = trace_context(request.metadata());
        let place = request.extensions().get::<Place>().cloned();
        let request = request.into_inner();
        shared.check_limits(&request)?;

        let account = match request.account.is_empty() {
            true => DEFAULT_ACCOUNT.to_owned(),
            false => request.account,
        };
        let webhook = RawWebhook {
            payload: request.payload,
            headers: request
                .headers
                .into_iter()
                .map(|header| (header.name, header.value))
                .collect(),
        };
        // On a task of its own: a caller that goes away neither stops what has begun nor keeps it from being counted.
        let ingestor = Arc::clone(&shared.ingestor);
        let ingested = shared.ingests.spawn(async move {
            let _place = place;
            ingestor
                .ingest(&request.provider, &account, webhook, received_at, trace)
                .await
        });
        let outcome = ingested.await.map_err(|error| {
            // The text of a panic may quote the webhook.
            tracing::error!(panicked = error.is_panic(), "a webhook could not be taken");
            status::error(
                Code::LogUnavailable,
                "the webhook could not be taken; send it again",
            )
        })??;
        let response = shared.response(outcome, request.return_event).await?;
        Ok(Response::new(response))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let shared = self.0.clone();
        let Ok(place) = Arc::clone(&shared.subscriptions).try_acquire_owned() else {
            let limit = shared.config.max_subscriptions;
            let message = format!("{limit} subscriptions are open already; try again");
            return Err(status::error(Code::Overloaded, message));
        };
        let options = shared.options(request.into_inner()).await?;
        let log = Arc::clone(&shared.log);
        let subscription = Subscription::new(log, options, shared.draining.clone());
        let open = (subscription, shared, place);
        let responses = stream::unfold(open, |(mut subscription, shared, place)| async move {
            let response = match subscription.next().await? {
                Ok(delivery) => Ok(SubscribeResponse {
                    cursor: shared.cursor(delivery.position).encode(),
                    message: Some(wire(delivery.message)),
                }),
                Err(ended) => Err(Status::from(ended)),
            };
            Some((response, (subscription, shared, place)))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    type IngestStreamStream =
        Pin<Box<dyn Stream<Item = Result<crate::proto::IngestStreamResponse, Status>> + Send>>;

    async fn ingest_stream(
        &self,
        _request: Request<tonic::Streaming<crate::proto::IngestStreamRequest>>,
    ) -> Result<Response<Self::IngestStreamStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_events(
        &self,
        _request: Request<crate::proto::ListEventsRequest>,
    ) -> Result<Response<crate::proto::ListEventsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_verification(
        &self,
        _request: Request<crate::proto::GetVerificationRequest>,
    ) -> Result<Response<crate::proto::GetVerificationResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn commit_cursor(
        &self,
        _request: Request<crate::proto::CommitCursorRequest>,
    ) -> Result<Response<crate::proto::CommitCursorResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_event(
        &self,
        request: Request<GetEventRequest>,
    ) -> Result<Response<GetEventResponse>, Status> {
        let request = request.into_inner();
        let event_id = parse_id("event_id", &request.event_id)?;
        let stored = self.0.find(event_id).await?;
        Ok(Response::new(GetEventResponse {
            event: Some(decode(&stored, request.include_personal_data)?),
            cursor: self.0.cursor(stored.position).encode(),
        }))
    }
}

impl Shared {
    /// The cursor of a position in this log.
    pub(super) fn cursor(&self, position: Position) -> Cursor {
        self.log.cursor(position)
    }

    /// The first cursor that can be resumed after.
    pub(super) fn first(&self) -> Cursor {
        self.cursor(self.log.start())
    }

    /// The event with this id.
    pub(super) async fn find(&self, event_id: Uuid) -> Result<StoredEvent, Status> {
        let found = self.log.find(event_id).await;
        found.map_err(status::read_error)?.ok_or_else(|| {
            status::error(Code::EventNotFound, "the log holds no event with this id")
        })
    }

    fn check_limits(&self, request: &IngestRequest) -> Result<(), Status> {
        let config = &self.config;
        if request.provider.is_empty() {
            return Err(status::invalid("provider", "is missing"));
        }
        if request.payload.is_empty() {
            return Err(status::invalid("payload", "is empty"));
        }
        if request.payload.len() > config.max_payload_bytes {
            let message = format!(
                "the payload has {} bytes, and {} are allowed",
                request.payload.len(),
                config.max_payload_bytes
            );
            return Err(status::error(Code::PayloadTooLarge, message));
        }
        if request.headers.len() > config.max_headers {
            let description = format!("holds more than {} headers", config.max_headers);
            return Err(status::invalid("headers", description));
        }
        let header_bytes = request.headers.iter();
        let header_bytes: usize = header_bytes.map(|h| h.name.len() + h.value.len()).sum();
        if header_bytes > config.max_header_bytes {
            let description = format!("holds more than {} bytes", config.max_header_bytes);
            return Err(status::invalid("headers", description));
        }
        if request.headers.iter().any(|header| header.name.is_empty()) {
            return Err(status::invalid("headers", "holds a header without a name"));
        }
        Ok(())
    }

    async fn response(
        &self,
        outcome: Outcome,
        return_event: bool,
    ) -> Result<IngestResponse, Status> {
        let (status, place) = match outcome {
            Outcome::Accepted(place) => (IngestStatus::Accepted, place),
            Outcome::Duplicate(place) => (IngestStatus::Duplicate, place),
            Outcome::Quarantined(id) => {
                return Ok(IngestResponse {
                    status: IngestStatus::Quarantined.into(),
                    quarantine_id: id.to_string(),
                    ..Default::default()
                });
            }
            Outcome::Ignored => {
                return Ok(IngestResponse {
                    status: IngestStatus::Ignored.into(),
                    ..Default::default()
                });
            }
        };
        let EventPlace { event_id, position } = place;
        let event = match return_event {
            true => Some(decode(&self.find(event_id).await?, false)?),
            false => None,
        };
        Ok(IngestResponse {
            status: status.into(),
            event_id: event_id.to_string(),
            cursor: self.cursor(position).encode(),
            quarantine_id: String::new(),
            event,
        })
    }

    /// Checks what a subscriber asks for, and finds where it starts.
    async fn options(&self, request: SubscribeRequest) -> Result<Options, Status> {
        const MAX_CONSUMER_BYTES: usize = 128;
        if request.consumer.len() > MAX_CONSUMER_BYTES {
            let description = format!("is longer than {MAX_CONSUMER_BYTES} bytes");
            return Err(status::invalid("consumer", description));
        }
        tracing::info!(consumer.name = ?request.consumer, "a subscriber has come");
        let filter = Filter::try_from(request.filter.unwrap_or_default())
            .map_err(|error| status::invalid(error.field, error.description))?;
        Ok(Options {
            after: self.start(request.start).await?,
            filter,
            personal_data: request.include_personal_data,
            stop_when_caught_up: request.stop_when_caught_up,
            heartbeat: heartbeat(request.heartbeat_interval)?,
        })
    }

    async fn start(&self, start: Option<Start>) -> Result<Position, Status> {
        match start {
            None | Some(Start::Latest(_)) => Ok(self.log.tail().end()),
            Some(Start::Committed(_)) => Err(Status::unimplemented("not yet")),
            Some(Start::Earliest(_)) => Ok(self.log.start()),
            Some(Start::Since(since)) => {
                if !is_valid(&since) {
                    return Err(status::invalid(
                        "since",
                        "is not a time between the years 1 and 9999",
                    ));
                }
                let position = self.log.position_before(since).await;
                position.map_err(status::read_error)
            }
            Some(Start::AfterCursor(text)) => {
                let cursor = Cursor::decode(&text)
                    .map_err(|error| status::invalid("after_cursor", format!("is {error}")))?;
                self.log
                    .resolve(&cursor)
                    .map_err(|refused| status::out_of_range(&refused.to_string(), &self.first()))
            }
        }
    }
}

fn heartbeat(interval: Option<prost_types::Duration>) -> Result<Duration, Status> {
    const DEFAULT: Duration = Duration::from_secs(15);
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(55);
    let Some(interval) = interval else {
        return Ok(DEFAULT);
    };
    Duration::try_from(interval)
        .ok()
        .filter(|interval| (LEAST..=MOST).contains(interval))
        .ok_or_else(|| status::invalid("heartbeat_interval", "is not between 1 s and 55 s"))
}

fn is_valid(time: &Timestamp) -> bool {
    const YEAR_1: i64 = -62_135_596_800;
    const YEAR_10000: i64 = 253_402_300_800;
    (YEAR_1..YEAR_10000).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos)
}

pub(super) fn parse_id(field: &str, text: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(text).map_err(|_| status::invalid(field, "is not a UUID"))
}

fn decode(stored: &StoredEvent, with_personal_data: bool) -> Result<VerificationEvent, Status> {
    VerificationEvent::decode(stored.encoded.to_bytes(with_personal_data)).map_err(|error| {
        tracing::error!(%error, log.position = stored.position.0, "a stored event cannot be decoded");
        status::error(Code::LogUnavailable, "the log cannot be read")
    })
}

fn wire(message: Message) -> SubscribeMessage {
    match message {
        Message::Event(event) => SubscribeMessage::Event(event),
        Message::Heartbeat => SubscribeMessage::Heartbeat(Heartbeat {}),
        Message::CaughtUp => SubscribeMessage::CaughtUp(CaughtUp {}),
        Message::FellBehind => SubscribeMessage::FellBehind(FellBehind {}),
        Message::Draining => SubscribeMessage::Draining(Draining {}),
    }
}

/// The trace of a call, if its metadata is well-formed. See <https://www.w3.org/TR/trace-context/>.
fn trace_context(metadata: &MetadataMap) -> Option<TraceContext> {
    const MAX_STATE_BYTES: usize = 512;
    let text = |name| metadata.get(name)?.to_str().ok();
    let traceparent = text("traceparent").filter(|value| is_traceparent(value))?;
    let tracestate = text("tracestate").filter(|value| value.len() <= MAX_STATE_BYTES);
    Some(TraceContext {
        traceparent: traceparent.to_owned(),
        tracestate: tracestate.unwrap_or_default().to_owned(),
    })
}

/// Whether a text is `<version>-<trace id>-<parent id>-<flags>`, in lower-case hex.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &&str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]) && parts.iter().all(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_trace_is_kept() {
        assert!(is_traceparent(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ));
        for bad in [
            "",
            "00-0af7-b7ad-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
