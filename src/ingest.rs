//! The way of one webhook: find the source, verify, decrypt, normalize, append, answer.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use prost_types::Timestamp as ProtoTimestamp;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    error::Code,
    event::{self, NORMALIZER_VERSION},
    log::{
        AppendError, Appended, EventLog, NewEvent, NewQuarantined, Origin, Position, QuarantineKind,
    },
    proto::{
        self, Environment, QuarantineReason, QuarantinedDelivery, TraceContext, VerificationEvent,
    },
    provider::{
        Normalized, NormalizedEvent, RawWebhook, VerifiedWebhook,
        jwe::JweError,
        signature::{self, VerifyError},
    },
    source::Source,
};

/// Takes webhooks and puts events into the log.
pub struct Ingestor {
    sources: Vec<Arc<Source>>,
    log: Arc<dyn EventLog>,
}

/// How a genuine webhook ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new event is in the log, durably.
    Accepted(EventPlace),
    /// The event is in the log already.
    Duplicate(EventPlace),
    /// We cannot say what it means. It is in the quarantine, durably, under this id.
    Quarantined(Uuid),
    /// Known, but not about verification.
    Ignored,
}

/// An event of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPlace {
    /// Its id.
    pub event_id: Uuid,
    /// Where it lies.
    pub position: Position,
}

/// Why a webhook was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// No such source.
    #[error("no source with this provider and account is configured")]
    SourceNotFound,
    /// Not genuine. The caller must not learn why.
    #[error("the signature is missing, malformed, wrong or stale")]
    Signature(#[source] VerifyError),
    /// Not stored; to be sent again.
    #[error("the event could not be stored; send the webhook again")]
    Append(#[from] AppendError),
}

impl IngestError {
    /// The reason that the caller is given.
    pub fn code(&self) -> Code {
        match self {
            Self::SourceNotFound => Code::SourceNotFound,
            Self::Signature(_) => Code::SignatureInvalid,
            Self::Append(_) => Code::LogUnavailable,
        }
    }
}

/// Why a genuine webhook is quarantined.
struct Doubt {
    reason: QuarantineReason,
    detail: String,
}

impl Ingestor {
    /// Takes webhooks of these sources.
    pub fn new(sources: Vec<Arc<Source>>, log: Arc<dyn EventLog>) -> Self {
        Self { sources, log }
    }

    /// The sources, in the order of the configuration.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// Takes one webhook, the whole way. Every call that names a source and is polled to its end, as the transport does on
    /// a task of its own, ends in exactly one counted outcome.
    pub async fn ingest(
        &self,
        provider: &str,
        account: &str,
        webhook: RawWebhook,
        received_at: Timestamp,
        trace: Option<TraceContext>,
    ) -> Result<Outcome, IngestError> {
        let source = self.find(provider, account)?;
        let ended = self.take(source, webhook, received_at, trace).await;
        count(source, &ended);
        ended
    }

    fn find(&self, provider: &str, account: &str) -> Result<&Arc<Source>, IngestError> {
        self.sources
            .iter()
            .find(|source| source.provider.name() == provider && source.account == account)
            .ok_or(IngestError::SourceNotFound)
    }

    async fn take(
        &self,
        source: &Arc<Source>,
        webhook: RawWebhook,
        received_at: Timestamp,
        trace: Option<TraceContext>,
    ) -> Result<Outcome, IngestError> {
        let mut webhook = source
            .verify(webhook, received_at)
            .map_err(IngestError::Signature)?;
        let received_at = proto_timestamp(received_at);

        if source.is_encrypted(&webhook) {
            match decrypt(source, webhook.content().clone()).await {
                Ok(content) => webhook = webhook.with_decrypted(content),
                Err(doubt) => return self.quarantine(source, &webhook, received_at, doubt).await,
            }
        }
        let normalized = match source.normalize(&webhook) {
            Ok(Normalized::Event(normalized)) => normalized,
            Ok(Normalized::Ignored) => return Ok(Outcome::Ignored),
            Err(error) => {
                let doubt = Doubt {
                    reason: error.reason(),
                    detail: error.to_string(),
                };
                return self.quarantine(source, &webhook, received_at, doubt).await;
            }
        };

        let event = complete(source, &webhook, *normalized, received_at, trace);
        let event_id = event.event_id;
        match self.log.append(event).await? {
            Appended::New(position) => Ok(Outcome::Accepted(EventPlace { event_id, position })),
            Appended::Duplicate(position) => {
                Ok(Outcome::Duplicate(EventPlace { event_id, position }))
            }
            Appended::Conflict(_) => {
                let doubt = Doubt {
                    reason: QuarantineReason::ConflictingContent,
                    detail: format!("event {event_id} is in the log with other content"),
                };
                self.quarantine(source, &webhook, received_at, doubt).await
            }
        }
    }

    async fn quarantine(
        &self,
        source: &Source,
        webhook: &VerifiedWebhook,
        received_at: ProtoTimestamp,
        doubt: Doubt,
    ) -> Result<Outcome, IngestError> {
        let provider = source.provider.name();
        let content_sha256 = webhook.content_sha256();
        let id = event::quarantine_id(provider, &source.account, doubt.reason, content_sha256);
        let summary = QuarantinedDelivery {
            quarantine_id: id.to_string(),
            provider: provider.to_owned(),
            account: source.account.clone(),
            received_at: Some(received_at),
            reason: doubt.reason.into(),
            detail: doubt.detail,
            delivery: None,
        };
        warn!(
            provider.name = provider,
            quarantine.id = %id,
            quarantine.reason = doubt.reason.as_str_name(),
            "a genuine delivery is quarantined"
        );
        let delivery = NewQuarantined {
            id,
            kind: QuarantineKind::Genuine,
            received_at,
            summary: summary.encode_to_vec().into(),
            delivery: delivery(source, webhook, received_at)
                .encode_to_vec()
                .into(),
        };
        self.log.quarantine(delivery).await?;
        Ok(Outcome::Quarantined(id))
    }
}

fn count(source: &Source, ended: &Result<Outcome, IngestError>) {
    let counts = &source.counts;
    let provider = source.provider.name();
    match ended {
        Ok(Outcome::Accepted(place)) => {
            counts.accepted.increment();
            debug!(
                provider.name = provider,
                event.id = %place.event_id,
                log.position = place.position.0,
                "event accepted"
            );
        }
        Ok(Outcome::Duplicate(place)) => {
            counts.duplicate.increment();
            debug!(provider.name = provider, event.id = %place.event_id, "redelivery recognized");
        }
        Ok(Outcome::Quarantined(_)) => counts.quarantined.increment(),
        Ok(Outcome::Ignored) => counts.ignored.increment(),
        Err(IngestError::Signature(error)) => {
            counts.signature_invalid.increment();
            debug!(provider.name = provider, %error, "delivery not genuine");
        }
        Err(IngestError::Append(error)) => {
            counts.log_unavailable.increment();
            warn!(provider.name = provider, %error, "delivery not stored");
        }
        Err(IngestError::SourceNotFound) => {}
    }
}

/// Decrypts on a thread that may take its time.
async fn decrypt(source: &Arc<Source>, payload: Bytes) -> Result<Bytes, Doubt> {
    let source = Arc::clone(source);
    let decrypted = tokio::task::spawn_blocking(move || source.decrypt(&payload)).await;
    let error = match decrypted {
        Ok(Ok(content)) => return Ok(content),
        Ok(Err(error)) => error,
        Err(_) => JweError::Undecryptable,
    };
    let reason = match error {
        JweError::Malformed => QuarantineReason::Unparseable,
        JweError::UnknownKey => QuarantineReason::DecryptionKeyMissing,
        JweError::Unsupported(_) | JweError::Undecryptable => QuarantineReason::Undecryptable,
    };
    Err(Doubt {
        reason,
        detail: error.to_string(),
    })
}

/// Adds to an event what its adapter does not know.
fn complete(
    source: &Source,
    webhook: &VerifiedWebhook,
    normalized: NormalizedEvent,
    received_at: ProtoTimestamp,
    trace: Option<TraceContext>,
) -> NewEvent {
    let NormalizedEvent { key, event } = normalized;
    let provider = source.provider.name();
    let event_id = event::event_id(provider, &source.account, &key);
    let occurred_at = event.occurred_at;
    let event = describe(source, webhook, event_id, event);
    let event = VerificationEvent {
        received_at: Some(received_at),
        trace,
        ..event
    };
    NewEvent {
        event_id,
        content_sha256: *webhook.content_sha256(),
        verification: event::verification_key(&event),
        occurred_at,
        received_at,
        origin: Origin::Received,
        encoded: event::encode(event),
        delivery: delivery(source, webhook, received_at)
            .encode_to_vec()
            .into(),
    }
}

/// Adds to an event its id and where it comes from: all that follows from the webhook and the configuration.
pub fn describe(
    source: &Source,
    webhook: &VerifiedWebhook,
    event_id: Uuid,
    event: VerificationEvent,
) -> VerificationEvent {
    let told = event.source.unwrap_or_default();
    // The signed word of the provider wins over the configuration.
    let environment = match told.environment() {
        Environment::Unspecified => source.environment,
        environment => environment,
    };
    VerificationEvent {
        event_id: event_id.to_string(),
        source: Some(proto::Source {
            provider: source.provider.name().to_owned(),
            account: source.account.clone(),
            environment: environment.into(),
            payload_sha256: hex::encode(signature::sha256(&webhook.raw().payload)),
            signature_scheme: webhook.scheme().name.to_owned(),
            secret_id: webhook.secret_id().to_owned(),
            ..told
        }),
        normalizer_version: NORMALIZER_VERSION.to_owned(),
        ..event
    }
}

/// Headers that belong to the hop before us and may hold its credentials.
const HOP_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The evidence to keep.
fn delivery(
    source: &Source,
    webhook: &VerifiedWebhook,
    received_at: ProtoTimestamp,
) -> proto::Delivery {
    let headers = webhook.raw().headers.iter();
    let of_webhook = |name: &str| !HOP_HEADERS.iter().any(|hop| hop.eq_ignore_ascii_case(name));
    proto::Delivery {
        provider: source.provider.name().to_owned(),
        account: source.account.clone(),
        received_at: Some(received_at),
        payload: webhook.raw().payload.clone(),
        headers: headers
            .filter(|(name, _)| of_webhook(name))
            .map(|(name, value)| proto::Header {
                name: name.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        signature_scheme: webhook.scheme().name.to_owned(),
        secret_id: webhook.secret_id().to_owned(),
    }
}

/// A time as protobuf writes it.
pub fn proto_timestamp(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
