//! `Subscribe` and `CommitCursor`: what a subscriber asks for, where it starts, and how far it has come.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use prost_types::Timestamp;
use tokio::time::Instant;
use tonic::Status;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    Shared,
    grpc::{Responses, personal_data},
    now, status,
};
use crate::{
    caller::Caller,
    error::Code,
    event,
    filter::Filter,
    ingest::proto_timestamp,
    log::{Commit, CommitError, Consumer, Cursor, MAX_CONSUMERS, Position},
    proto::{
        CaughtUp, CommitCursorRequest, Draining, EventFilter, FellBehind, Heartbeat, Scope,
        SubscribeMessage, SubscribeRequest, SubscribeResponse, subscribe_request::Start,
    },
    subscription::{Delivery, EndError, Message, Options, Subscription},
    telemetry::traces,
};

/// Where a stream starts, and whether that place may move on with retention before anything was sent.
type StartPlace = (Position, bool);

impl Shared {
    /// Opens a stream of events.
    pub(super) async fn subscribe(
        &self,
        caller: &Caller,
        request: SubscribeRequest,
    ) -> Result<Responses<SubscribeResponse>, Status> {
        let permit = self
            .rooms
            .subscriptions
            .enter(&self.shares.of(caller).subscriptions)?;
        let consumer = owned_by(caller, &request.consumer);
        let options = self.options(caller, request).await?;
        let log = Arc::clone(&self.log);
        let subscription = Subscription::new(log, options, self.draining.clone());
        // In a box: it is moved with each event.
        let open = Box::new((subscription, self.clone(), consumer, permit));
        let responses = stream::unfold(open, |mut open| async move {
            let (subscription, shared, consumer, _permit) = open.as_mut();
            let response = match subscription.next().await? {
                Ok(delivery) => Ok(shared.deliver(delivery, subscription.is_live(), consumer)),
                Err(EndError::Draining) => Err(status::draining()),
                Err(EndError::Read(failed)) => Err(shared.read_error(failed)),
            };
            Some((response, open))
        });
        Ok(Box::pin(responses))
    }

    /// Gives a message to a subscriber. What it reads again is in no trace: a replay must not push out what comes in.
    fn deliver(&self, delivery: Delivery, is_live: bool, consumer: &str) -> SubscribeResponse {
        let span = match &delivery.message {
            Message::Event(event) if self.telemetry.traces && is_live => {
                self.delivery_span(event, consumer)
            }
            _ => None,
        };
        match &delivery.message {
            Message::Event(_) => self.telemetry.metrics.delivered(),
            Message::FellBehind => self.telemetry.metrics.fell_behind(),
            Message::Heartbeat | Message::CaughtUp | Message::Draining => {}
        }
        span.unwrap_or_else(Span::none)
            .in_scope(|| SubscribeResponse {
                cursor: self.cursor(delivery.position).encode(),
                message: Some(wire(delivery.message)),
            })
    }

    /// The span of an event that is given to a subscriber, by the semantic conventions for messaging. It begins a trace, so
    /// that a subscription that stays open for days is not one, and is linked to that of the event. `None` if that one is
    /// not sent, or there are too many.
    fn delivery_span(&self, event: &Bytes, consumer: &str) -> Option<Span> {
        let (event_id, trace) = event::trace_of(event)?;
        let trace = traces::sent(&trace)?;
        if !self.delivery_spans.take(Instant::now()) {
            return None;
        }
        let span = info_span!(
            parent: None,
            "deliver",
            otel.name = "deliver events",
            otel.kind = "client",
            messaging.system = "verdict",
            messaging.operation.name = "deliver",
            messaging.operation.type = "send",
            messaging.destination.name = "events",
            messaging.message.id = event_id,
            messaging.consumer.group.name = Some(consumer).filter(|name| !name.is_empty()),
        );
        span.add_link(trace);
        Some(span)
    }

    /// Stores how far a consumer has come.
    pub(super) async fn commit(
        &self,
        caller: &Caller,
        request: CommitCursorRequest,
    ) -> Result<(), Status> {
        check_consumer(&request.consumer)?;
        let position = self.resolve("cursor", &request.cursor)?;
        self.check_share(caller, &request.consumer)?;
        let commit = Commit {
            consumer: Consumer {
                name: owned_by(caller, &request.consumer),
                cursor: self.cursor(position),
                committed_at: proto_timestamp(now()),
            },
            force: request.force,
        };
        self.log.commit(commit).await.map_err(commit_error)
    }

    /// Refuses a new consumer of a caller that has its share of them: none may use up the names that are there for all.
    fn check_share(&self, caller: &Caller, consumer: &str) -> Result<(), Status> {
        const SHARE: usize = MAX_CONSUMERS / 4;
        let Some(owner) = caller.name() else {
            return Ok(());
        };
        let (owner, name) = (format!("{owner}/"), owned_by(caller, consumer));
        let known = self.log.consumers();
        let is_known = known.iter().any(|one| one.name == name);
        let owned = known.iter().filter(|one| one.name.starts_with(&owner));
        match is_known || owned.count() < SHARE {
            true => Ok(()),
            false => {
                let description = format!("is new, and the caller has {SHARE} already");
                Err(status::invalid("consumer", description))
            }
        }
    }

    /// Checks what a subscriber asks for, and finds where it starts.
    async fn options(&self, caller: &Caller, request: SubscribeRequest) -> Result<Options, Status> {
        if !request.consumer.is_empty() {
            check_consumer(&request.consumer)?;
        }
        let personal_data = personal_data(caller, request.include_personal_data)?;
        let consumer = owned_by(caller, &request.consumer);
        tracing::info!(consumer.name = consumer, "a subscriber has come");
        let filter = filter(request.filter)?.within(caller.reach(Scope::Subscribe));
        let heartbeat = heartbeat(request.heartbeat_interval)?;
        let (after, may_move) = self.start(request.start, &consumer).await?;
        Ok(Options {
            after,
            may_move,
            filter,
            personal_data,
            stop_when_caught_up: request.stop_when_caught_up,
            heartbeat,
        })
    }

    /// `consumer` is empty when the subscriber gives no name.
    async fn start(&self, start: Option<Start>, consumer: &str) -> Result<StartPlace, Status> {
        match start {
            None | Some(Start::Latest(_)) => Ok((self.log.tail().end(), false)),
            Some(Start::Earliest(_)) => Ok((self.log.start(), true)),
            Some(Start::Since(since)) => {
                if !is_valid(&since) {
                    return Err(status::invalid(
                        "since",
                        "is not a time between the years 1 and 9999",
                    ));
                }
                let position = self.log.position_before(since).await;
                Ok((position.map_err(|failed| self.read_error(failed))?, true))
            }
            Some(Start::AfterCursor(text)) => Ok((self.resolve("after_cursor", &text)?, false)),
            Some(Start::Committed(_)) => self.committed(consumer),
        }
    }

    fn committed(&self, name: &str) -> Result<StartPlace, Status> {
        if name.is_empty() {
            return Err(status::invalid(
                "consumer",
                "is missing; a start at committed requires it",
            ));
        }
        let consumers = self.log.consumers();
        match consumers.iter().find(|consumer| consumer.name == name) {
            Some(consumer) => Ok((self.place(&consumer.cursor)?, false)),
            None => Ok((self.log.start(), true)),
        }
    }

    /// The place of a cursor that a caller sent.
    fn resolve(&self, field: &str, text: &str) -> Result<Position, Status> {
        let cursor =
            Cursor::decode(text).map_err(|error| status::invalid(field, format!("is {error}")))?;
        self.place(&cursor)
    }
}

/// The name under which the log knows a consumer. Each caller has names of its own, so that none can move the cursors of
/// another.
fn owned_by(caller: &Caller, consumer: &str) -> String {
    match caller.name() {
        Some(caller) if !consumer.is_empty() => format!("{caller}/{consumer}"),
        _ => consumer.to_owned(),
    }
}

/// The filter of a request.
pub(super) fn filter(filter: Option<EventFilter>) -> Result<Filter, Status> {
    Filter::try_from(filter.unwrap_or_default())
        .map_err(|error| status::invalid(error.field, error.description))
}

fn check_consumer(name: &str) -> Result<(), Status> {
    const MAX_BYTES: usize = 128;
    if name.is_empty() {
        return Err(status::invalid("consumer", "is missing"));
    }
    if name.len() > MAX_BYTES {
        let description = format!("is longer than {MAX_BYTES} bytes");
        return Err(status::invalid("consumer", description));
    }
    if name.chars().any(char::is_control) {
        return Err(status::invalid("consumer", "holds a control character"));
    }
    Ok(())
}

fn commit_error(failed: CommitError) -> Status {
    match failed {
        CommitError::Behind => status::error(
            Code::CursorBehind,
            "the consumer has committed a later cursor; set force to go back",
        ),
        CommitError::TooMany => status::invalid(
            "consumer",
            format!(
                "is new, and {failed}; forget one that has gone: verdict consumers delete, or AdminService.DeleteConsumer"
            ),
        ),
        CommitError::Append(error) => {
            tracing::warn!(%error, "a cursor could not be stored");
            status::error(
                Code::LogUnavailable,
                "the cursor could not be stored; commit it again",
            )
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

fn wire(message: Message) -> SubscribeMessage {
    match message {
        Message::Event(event) => SubscribeMessage::Event(event),
        Message::Heartbeat => SubscribeMessage::Heartbeat(Heartbeat {}),
        Message::CaughtUp => SubscribeMessage::CaughtUp(CaughtUp {}),
        Message::FellBehind => SubscribeMessage::FellBehind(FellBehind {}),
        Message::Draining => SubscribeMessage::Draining(Draining {}),
    }
}
