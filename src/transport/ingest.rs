//! `Ingest`: one webhook, from its request to its answer. The webhooks of a stream go the same way.

use std::sync::Arc;

use tonic::{Code as GrpcCode, Request, Status};
use tracing::{Instrument, Span, error, warn};
use uuid::Uuid;

use super::{
    Shared,
    admission::Permit,
    auditing::Auditable,
    detach::{DetachOnDrop, Driver, Panicked},
    grpc::{account_or_default, caller},
    now, status,
};
use crate::{
    caller::{Caller, Reach},
    error::Code,
    ingest::{EventPlace, IngestError, Outcome, Received, jiff_timestamp},
    proto::{IngestRequest, IngestResponse, IngestStatus, Scope, TraceContext, VerificationEvent},
    provider::RawWebhook,
    telemetry::{metrics::Step, traces},
};

/// What the webhooks of one call have in common.
#[derive(Clone)]
pub(super) struct Call {
    caller: Caller,
    /// The trace that the caller has told of.
    trace: Option<TraceContext>,
    /// What the webhooks are a part of.
    span: Span,
    /// Held as long as anything of the call goes on.
    _permit: Option<Permit>,
}

impl Call {
    pub(super) fn of<T: Auditable>(request: &Request<T>) -> Result<Self, Status> {
        Ok(Self {
            caller: caller(request)?,
            trace: request.extensions().get::<TraceContext>().cloned(),
            span: Span::current(),
            _permit: request.extensions().get::<Permit>().cloned(),
        })
    }

    /// Who calls.
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What the webhooks are a part of.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// The same call, with a span of its own for one webhook.
    pub(super) fn within(self, span: Span) -> Self {
        Self { span, ..self }
    }

    /// The same call, holding another permit instead.
    pub(super) fn with_permit(self, permit: Permit) -> Self {
        Self {
            _permit: Some(permit),
            ..self
        }
    }
}

/// What has become of a webhook.
pub(super) type Ingested = Result<Outcome, IngestError>;

/// A webhook that is being taken, by whoever waits for it.
pub(super) struct Begun<F = DetachOnDrop<Ingested>> {
    ingested: F,
    return_event: bool,
    span: Span,
}

impl Begun {
    /// The same, taken by a driver.
    pub(super) fn driven_by(
        self,
        driver: &Driver<Ingested>,
    ) -> Begun<impl Future<Output = Result<Ingested, Panicked>> + Send + use<>> {
        Begun {
            ingested: driver.drive(self.ingested),
            return_event: self.return_event,
            span: self.span,
        }
    }
}

/// A webhook that is refused before its way begins.
pub(super) struct Refused {
    /// As operators are told.
    reason: &'static str,
    status: Status,
}

impl Refused {
    pub(super) fn invalid(field: &str, description: impl Into<String>) -> Self {
        Self::with("invalid_request", status::invalid(field, description))
    }

    fn headers_too_large(description: impl Into<String>) -> Self {
        Self::with("headers_too_large", status::invalid("headers", description))
    }

    fn with(reason: &'static str, status: Status) -> Self {
        Self { reason, status }
    }
}

impl Shared {
    /// Counts a webhook that is refused, and says what its sender is told.
    pub(super) fn refuse(&self, request: Option<&IngestRequest>, refused: Refused) -> Status {
        let provider = request.map_or("", |request| &request.provider);
        let account = request.map_or("", |request| account_or_default(&request.account));
        self.ingestor.refused(provider, account, refused.reason);
        refused.status
    }

    /// Counts a webhook that could not be read from its stream, and says how that ends.
    pub(super) fn unreadable(&self, failed: Status) -> Status {
        let reason = match failed.code() {
            // An error of our own codec.
            GrpcCode::InvalidArgument => Some("headers_too_large"),
            _ => status::unread(&failed),
        };
        match reason {
            Some(reason) => self.refuse(None, Refused::with(reason, status::detailed(failed))),
            // The caller has gone.
            None => failed,
        }
    }

    /// Begins to take a webhook: a caller that goes away neither stops what has begun nor keeps it from being counted. It
    /// waits for its turn, and holds what that gives it, until the webhook is taken.
    pub(super) fn begin<T: Send>(
        &self,
        call: Call,
        request: IngestRequest,
        turn: impl Future<Output = T> + Send + 'static,
    ) -> Result<Begun, Status> {
        let account = account_or_default(&request.account).to_owned();
        let checked = self.check_limits(&request);
        let checked = checked.and_then(|()| receipt(&call.caller, &request, &account));
        let receipt = checked.map_err(|refused| self.refuse(Some(&request), refused))?;
        let return_event = request.return_event;
        let webhook = RawWebhook {
            payload: request.payload,
            headers: request
                .headers
                .into_iter()
                .map(|header| (header.name, header.value))
                .collect(),
        };
        let ingestor = Arc::clone(&self.ingestor);
        let span = call.span.clone();
        let taking = async move {
            let Call {
                trace,
                span,
                _permit,
                ..
            } = call;
            let trace = traces::place(&span).or(trace);
            let _turn = turn.await;
            ingestor
                .ingest(&request.provider, &account, webhook, receipt, trace)
                .await
        };
        Ok(Begun {
            ingested: DetachOnDrop::new(&self.ingests, taking.instrument(span.clone())),
            return_event,
            span,
        })
    }

    /// Waits for a webhook to be taken, and answers.
    pub(super) async fn finish<F>(&self, begun: Begun<F>) -> Result<IngestResponse, Status>
    where
        F: Future<Output = Result<Ingested, Panicked>>,
    {
        let Begun {
            ingested,
            return_event,
            span,
        } = begun;
        let finish = async {
            let outcome = ingested.await.map_err(|Panicked| {
                error!("a webhook could not be taken: taking it has panicked");
                status::error(
                    Code::LogUnavailable,
                    "the webhook could not be taken; send it again",
                )
            })??;
            let answer = self.telemetry.metrics.begin(Step::Answer);
            Ok(answer.of(self.response(outcome, return_event)).await)
        };
        finish.instrument(span).await
    }

    fn check_limits(&self, request: &IngestRequest) -> Result<(), Refused> {
        let config = &self.config;
        if request.provider.is_empty() {
            return Err(Refused::invalid("provider", "is missing"));
        }
        if request.payload.is_empty() {
            return Err(Refused::invalid("payload", "is empty"));
        }
        if request.payload.len() > config.max_payload_bytes {
            let message = format!(
                "the payload has {} bytes, and {} are allowed",
                request.payload.len(),
                config.max_payload_bytes
            );
            let status = status::error(Code::PayloadTooLarge, message);
            return Err(Refused::with("payload_too_large", status));
        }
        if request.headers.len() > config.max_headers {
            let description = format!("holds more than {} headers", config.max_headers);
            return Err(Refused::headers_too_large(description));
        }
        let header_bytes = request.headers.iter();
        let header_bytes: usize = header_bytes.map(|h| h.name.len() + h.value.len()).sum();
        if header_bytes > config.max_header_bytes {
            let description = format!("holds more than {} bytes", config.max_header_bytes);
            return Err(Refused::headers_too_large(description));
        }
        if request.headers.iter().any(|header| header.name.is_empty()) {
            return Err(Refused::invalid("headers", "holds a header without a name"));
        }
        Ok(())
    }

    async fn response(&self, outcome: Outcome, return_event: bool) -> IngestResponse {
        let (status, place) = match outcome {
            Outcome::Accepted(place) => (IngestStatus::Accepted, place),
            Outcome::Duplicate(place) => (IngestStatus::Duplicate, place),
            Outcome::Quarantined(id) => {
                return IngestResponse {
                    status: IngestStatus::Quarantined.into(),
                    quarantine_id: id.to_string(),
                    ..Default::default()
                };
            }
            Outcome::Ignored => {
                return IngestResponse {
                    status: IngestStatus::Ignored.into(),
                    ..Default::default()
                };
            }
        };
        let EventPlace { event_id, position } = place;
        let event = match return_event {
            true => self.ingested(event_id).await,
            false => None,
        };
        IngestResponse {
            status: status.into(),
            event_id: event_id.to_string(),
            cursor: self.cursor(position).encode(),
            quarantine_id: String::new(),
            event,
        }
    }

    /// The event that a webhook has become. It is in the log, whether it can be read back or not: an error would have it
    /// sent again.
    async fn ingested(&self, event_id: Uuid) -> Option<VerificationEvent> {
        let read = match self.find(event_id, &Reach::Everything).await {
            Ok(stored) => self.event(&stored, &Reach::Nothing).await,
            Err(failed) => Err(failed),
        };
        if let Err(failed) = &read {
            warn!(event.id = %event_id, error = failed.message(), "an event cannot be returned with its answer");
        }
        read.ok()
    }
}

/// When a webhook was received, and whether that was some time ago: the caller is believed if it may say so.
fn receipt(caller: &Caller, request: &IngestRequest, account: &str) -> Result<Received, Refused> {
    let provider = &request.provider;
    if !caller.may(Scope::Ingest, provider, account) {
        let status = status::scope_missing(Scope::Ingest);
        return Err(Refused::with("scope_missing", status));
    }
    let now = now();
    let Some(claimed) = request.received_at else {
        return Ok(Received::Now(now));
    };
    if !caller.may(Scope::Backfill, provider, account) {
        return Ok(Received::Now(now));
    }
    let claimed = jiff_timestamp(claimed).filter(|claimed| *claimed <= now);
    let claimed =
        claimed.ok_or_else(|| Refused::invalid("received_at", "is not a time of the past"))?;
    Ok(Received::Before(claimed))
}
