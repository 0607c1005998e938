//! The way of one webhook: find the source, verify, decrypt, normalize, append, answer.

use std::sync::Arc;

use jiff::Timestamp;
use prost::Message;
use prost_types::Timestamp as ProtoTimestamp;
use tokio::time::Instant;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    allowance::Allowance,
    delivery,
    ending::{self, Pending},
    error::Code,
    event::{self, NORMALIZER_VERSION},
    log::{
        AppendError, Appended, EventLog, NewEvent, NewQuarantined, Origin, Position, QuarantineKind,
    },
    proto::{
        self, Delivery, Environment, QuarantineReason, QuarantinedDelivery, TraceContext,
        VerificationEvent,
    },
    provider::{
        Normalized, NormalizedEvent, RawWebhook, VerifiedWebhook, jwe::JweError,
        signature::VerifyError,
    },
    source::Source,
    telemetry::metrics::{Metrics, Step, UNKNOWN},
};

/// How many deliveries that are not genuine a source keeps at once, and how many more with each second. Whoever can call
/// can send as many as they like, and each costs as much as a genuine one.
const KEPT_AT_ONCE: u32 = 100;
const KEPT_PER_SECOND: u32 = 20;

/// Takes webhooks and puts events into the log.
pub struct Ingestor {
    sources: Vec<Arc<Source>>,
    /// For each source, how many deliveries that are not genuine it may still keep.
    keeping: Vec<Allowance>,
    pub(crate) log: Arc<dyn EventLog>,
    metrics: Arc<Metrics>,
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

/// Why a genuine webhook has no place in the log.
pub(crate) struct Doubt {
    pub(crate) reason: QuarantineReason,
    pub(crate) detail: String,
}

impl Doubt {
    /// The id under which a genuine webhook is quarantined.
    pub(crate) fn quarantine_id(&self, source: &Source, webhook: &VerifiedWebhook) -> Uuid {
        let (provider, account) = (source.provider.name(), &source.account);
        event::quarantine_id(provider, account, self.reason, webhook.content_sha256())
    }
}

/// How and when a webhook came in.
pub struct Receipt {
    /// When it was received.
    pub received_at: ProtoTimestamp,
    /// The trace in which it came.
    pub trace: Option<TraceContext>,
    /// How its event comes to be appended now.
    pub origin: Origin,
}

/// When a webhook was received.
#[derive(Clone, Copy, Debug)]
pub enum Received {
    /// It has just come.
    Now(Timestamp),
    /// It came some time ago, and is handed over now.
    Before(Timestamp),
}

/// What became of a genuine webhook, before a quarantine is thought of.
pub(crate) enum Settled {
    Accepted(EventPlace),
    Duplicate(EventPlace),
    Ignored,
    Doubtful(VerifiedWebhook, Doubt),
}

impl Ingestor {
    /// Takes webhooks of these sources, and counts and times what is done with them.
    pub fn new(sources: Vec<Arc<Source>>, log: Arc<dyn EventLog>, metrics: Arc<Metrics>) -> Self {
        let allowance = |_| Allowance::new(KEPT_AT_ONCE, KEPT_PER_SECOND);
        Self {
            keeping: sources.iter().map(allowance).collect(),
            sources,
            log,
            metrics,
        }
    }

    /// The sources, in the order of the configuration.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// Takes one webhook, the whole way. Every call that names a source and is polled to its end, as the transport sees to,
    /// ends in exactly one counted outcome.
    pub async fn ingest(
        &self,
        provider: &str,
        account: &str,
        webhook: RawWebhook,
        received: Received,
        trace: Option<TraceContext>,
    ) -> Result<Outcome, IngestError> {
        let began = Instant::now();
        let find_source = self.metrics.begin(Step::FindSource);
        let Some(source) = find_source.run(|| self.source(provider, account)) else {
            let unknown = IngestError::SourceNotFound;
            self.refused(provider, account, ending::reason(&unknown));
            return Err(unknown);
        };
        let pending = Pending::new(source, &self.metrics, began);
        let ended = self.take(source, webhook, received, trace).await;
        pending.ended(&ended);
        ended
    }

    /// Counts a webhook whose way has not begun. Of what a sender says whose it is, only what is configured is told.
    pub(crate) fn refused(&self, provider: &str, account: &str, reason: &'static str) {
        let source = self.source(provider, account);
        let provider = source.map_or(UNKNOWN, |source| source.provider.name());
        self.metrics.rejected(provider, reason);
        debug!(provider.name = provider, reason, "delivery refused");
    }

    /// The source of this provider and account.
    pub(crate) fn source(&self, provider: &str, account: &str) -> Option<&Arc<Source>> {
        self.sources
            .iter()
            .find(|source| source.provider.name() == provider && source.account == account)
    }

    async fn take(
        &self,
        source: &Arc<Source>,
        webhook: RawWebhook,
        received: Received,
        trace: Option<TraceContext>,
    ) -> Result<Outcome, IngestError> {
        let (received_at, origin) = match received {
            Received::Now(time) => (time, Origin::Received),
            Received::Before(time) => (time, Origin::Redriven),
        };
        let kept = source.keep_unverified.then(|| webhook.clone());
        let verify = self.metrics.begin(Step::Verify);
        let verified = verify.run(|| source.verify(webhook, received_at));
        let received_at = proto_timestamp(received_at);
        let webhook = match verified {
            Ok(webhook) => webhook,
            Err(error) => {
                if let Some(webhook) = kept {
                    match self.keep(source, &webhook, received_at, &error).await {
                        true => source.counts.unverified_kept.increment(),
                        false => source.counts.unverified_dropped.increment(),
                    }
                }
                return Err(IngestError::Signature(error));
            }
        };
        let receipt = Receipt {
            received_at,
            trace,
            origin,
        };
        match self.settle(source, webhook, receipt).await? {
            Settled::Accepted(place) => Ok(Outcome::Accepted(place)),
            Settled::Duplicate(place) => Ok(Outcome::Duplicate(place)),
            Settled::Ignored => Ok(Outcome::Ignored),
            Settled::Doubtful(webhook, doubt) => {
                let quarantined = self.quarantine(source, &webhook, received_at, doubt).await;
                Ok(Outcome::Quarantined(quarantined?))
            }
        }
    }

    /// Turns a genuine webhook into an event of the log, if it can be understood.
    pub(crate) async fn settle(
        &self,
        source: &Arc<Source>,
        mut webhook: VerifiedWebhook,
        receipt: Receipt,
    ) -> Result<Settled, AppendError> {
        let understood = self.understand(source, &mut webhook, receipt.received_at);
        let normalized = match understood.await {
            Ok(Normalized::Event(normalized)) => *normalized,
            Ok(Normalized::Ignored) => return Ok(Settled::Ignored),
            Err(doubt) => return Ok(Settled::Doubtful(webhook, doubt)),
        };
        let event = complete(source, &webhook, normalized, receipt);
        let event_id = event.event_id;
        let place = |position| EventPlace { event_id, position };
        let append = self.metrics.begin(Step::Append);
        match append.of(self.log.append(event)).await? {
            Appended::New(position) => Ok(Settled::Accepted(place(position))),
            Appended::Duplicate(position) => Ok(Settled::Duplicate(place(position))),
            Appended::Conflict(_) => {
                let doubt = Doubt {
                    reason: QuarantineReason::ConflictingContent,
                    detail: format!("event {event_id} is in the log with other content"),
                };
                Ok(Settled::Doubtful(webhook, doubt))
            }
        }
    }

    /// What a genuine webhook means. It is decrypted on the way.
    async fn understand(
        &self,
        source: &Arc<Source>,
        webhook: &mut VerifiedWebhook,
        received_at: ProtoTimestamp,
    ) -> Result<Normalized, Doubt> {
        if source.is_encrypted(webhook) {
            let decrypt = self.metrics.begin(Step::Decrypt);
            decrypt.of(open(source, webhook, received_at)).await?;
        }
        let normalize = self.metrics.begin(Step::Normalize);
        let normalized = normalize.run(|| source.normalize(webhook));
        normalized.map_err(|error| Doubt {
            reason: error.reason(),
            detail: error.to_string(),
        })
    }

    /// Puts a genuine webhook into the quarantine, durably.
    pub(crate) async fn quarantine(
        &self,
        source: &Source,
        webhook: &VerifiedWebhook,
        received_at: ProtoTimestamp,
        doubt: Doubt,
    ) -> Result<Uuid, AppendError> {
        let reason = doubt.reason;
        let delivery = delivery::genuine(source, webhook, received_at);
        let quarantined = quarantined(delivery, received_at, doubt, webhook.content_sha256());
        let id = quarantined.id;
        let quarantine = self.metrics.begin(Step::Quarantine);
        quarantine.of(self.log.quarantine(quarantined)).await?;
        warn!(
            provider.name = source.provider.name(),
            quarantine.id = %id,
            quarantine.reason = reason.as_str_name(),
            "a genuine delivery is quarantined"
        );
        Ok(id)
    }

    /// Keeps a webhook that was not proved genuine, as far as there is room and not too many come at once, and says whether
    /// it did. The caller is not told: whoever forges webhooks must not learn what we do with them.
    async fn keep(
        &self,
        source: &Arc<Source>,
        webhook: &RawWebhook,
        received_at: ProtoTimestamp,
        error: &VerifyError,
    ) -> bool {
        let mut of_source = self.sources.iter().zip(&self.keeping);
        let allowance = of_source.find(|(known, _)| Arc::ptr_eq(known, source));
        if !allowance.is_some_and(|(_, allowance)| allowance.take(Instant::now())) {
            return false;
        }
        let doubt = Doubt {
            reason: QuarantineReason::Unverified,
            detail: error.to_string(),
        };
        let delivery = delivery::unverified(source, webhook, received_at);
        let sha256 = delivery::sha256(&delivery);
        let quarantined = quarantined(delivery, received_at, doubt, &sha256);
        let kept = self.log.quarantine(quarantined).await;
        if let Err(error) = &kept {
            let provider = source.provider.name();
            debug!(provider.name = provider, %error, "a delivery that is not genuine could not be kept");
        }
        kept.is_ok()
    }
}

/// A delivery for the quarantine that its reason belongs to. Its id follows from the reason and the content, so that one
/// for which nobody vouches can never take the id of a genuine one.
fn quarantined(
    delivery: Delivery,
    received_at: ProtoTimestamp,
    doubt: Doubt,
    content_sha256: &[u8; 32],
) -> NewQuarantined {
    let (provider, account) = (&delivery.provider, &delivery.account);
    let id = event::quarantine_id(provider, account, doubt.reason, content_sha256);
    let summary = QuarantinedDelivery {
        quarantine_id: id.to_string(),
        provider: provider.clone(),
        account: account.clone(),
        received_at: Some(received_at),
        reason: doubt.reason.into(),
        detail: doubt.detail,
        delivery: None,
    };
    NewQuarantined {
        id,
        kind: quarantine_kind(doubt.reason),
        received_at,
        summary: summary.encode_to_vec().into(),
        delivery: delivery.encode_to_vec().into(),
    }
}

/// The quarantine that a reason belongs to.
pub(crate) fn quarantine_kind(reason: QuarantineReason) -> QuarantineKind {
    match reason {
        QuarantineReason::Unverified => QuarantineKind::Unverified,
        _ => QuarantineKind::Genuine,
    }
}

/// Decrypts a genuine webhook if its provider encrypts, on a thread that may take its time.
pub(crate) async fn open(
    source: &Arc<Source>,
    webhook: &mut VerifiedWebhook,
    received_at: ProtoTimestamp,
) -> Result<(), Doubt> {
    if !source.is_encrypted(webhook) {
        return Ok(());
    }
    let (source, payload) = (Arc::clone(source), webhook.content().clone());
    let received_at = jiff_timestamp(received_at).unwrap_or_default();
    let decrypt = move || source.decrypt(&payload, received_at);
    let decrypted = tokio::task::spawn_blocking(decrypt).await;
    let error = match decrypted {
        Ok(Ok(content)) => {
            *webhook = webhook.clone().with_decrypted(content);
            return Ok(());
        }
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

/// Adds to an event what its adapter does not know, and encodes it as the log takes it.
pub fn complete(
    source: &Source,
    webhook: &VerifiedWebhook,
    normalized: NormalizedEvent,
    receipt: Receipt,
) -> NewEvent {
    let NormalizedEvent { key, event } = normalized;
    let Receipt {
        received_at,
        trace,
        origin,
    } = receipt;
    let event_id = event::event_id(source.provider.name(), &source.account, &key);
    let occurred_at = event.occurred_at;
    let event = VerificationEvent {
        received_at: Some(received_at),
        trace,
        ..describe(source, webhook, event_id, event)
    };
    NewEvent {
        event_id,
        content_sha256: *webhook.content_sha256(),
        verification: event::verification_key(&event),
        subject: event::subject_key(&event),
        occurred_at,
        received_at,
        origin,
        encoded: event::encode(event),
        delivery: delivery::encode(source, webhook, received_at),
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
            payload_sha256: base16ct::lower::encode_string(webhook.payload_sha256()),
            signature_scheme: webhook.scheme().name.to_owned(),
            secret_id: webhook.secret_id().to_owned(),
            ..told
        }),
        normalizer_version: NORMALIZER_VERSION.to_owned(),
        ..event
    }
}

/// A time as the rest of the program has it. `None` for one that no clock shows.
pub(crate) fn jiff_timestamp(time: ProtoTimestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// A time as protobuf writes it.
pub fn proto_timestamp(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
