//! How deliveries have ended: counted for each source, timed, and told in log and trace. Never to the sender.

use std::thread;

use tokio::time::Instant;
use tracing::{Span, debug};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    ingest::{IngestError, Outcome},
    provider::signature::VerifyError,
    source::Source,
    telemetry::{metrics::Metrics, traces},
};

/// A delivery that has not ended yet.
///
/// One whose adapter panics is answered as one that could not be stored: only when the provider sends it again, to a version
/// that is mended, is the evidence kept.
pub(crate) struct Pending<'i> {
    source: &'i Source,
    metrics: &'i Metrics,
    began: Instant,
}

impl<'i> Pending<'i> {
    /// A delivery to this source.
    pub(crate) fn new(source: &'i Source, metrics: &'i Metrics, began: Instant) -> Self {
        Self {
            source,
            metrics,
            began,
        }
    }

    /// It has ended.
    pub(crate) fn ended(self, ended: &Result<Outcome, IngestError>) {
        self.count(ended);
        let provider = self.source.provider.name();
        let span = Span::current();
        if !span.is_none() {
            describe(&span, provider, ended);
        }
        if let Err(error) = ended {
            self.metrics.rejected(provider, reason(error));
        }
        let exemplar = traces::exemplar(&span);
        self.metrics
            .ingested(provider, self.began.elapsed(), exemplar);
    }

    fn count(&self, ended: &Result<Outcome, IngestError>) {
        let counts = &self.source.counts;
        let provider = self.source.provider.name();
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
                // The log tells its trouble itself, once.
                debug!(provider.name = provider, %error, "delivery not stored");
            }
            Err(IngestError::SourceNotFound) => {}
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.source.counts.failed.increment();
            let provider = self.source.provider.name();
            self.metrics.rejected(provider, "failed");
        }
    }
}

/// Tells in a span how a delivery has ended.
fn describe(span: &Span, provider: &'static str, ended: &Result<Outcome, IngestError>) {
    span.set_attribute("provider.name", provider);
    match ended {
        Ok(outcome) => span.set_attribute("verdict.ingest.status", status(outcome)),
        Err(error) => span.set_attribute("verdict.ingest.rejection", reason(error)),
    }
    if let Ok(Outcome::Accepted(place) | Outcome::Duplicate(place)) = ended {
        span.set_attribute("event.id", place.event_id.to_string());
    }
}

fn status(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted(_) => "accepted",
        Outcome::Duplicate(_) => "duplicate",
        Outcome::Quarantined(_) => "quarantined",
        Outcome::Ignored => "ignored",
    }
}

/// Why a webhook was refused, as operators may know it.
pub(crate) fn reason(error: &IngestError) -> &'static str {
    match error {
        IngestError::SourceNotFound => "source_not_found",
        IngestError::Signature(VerifyError::Missing(_)) => "signature_missing",
        IngestError::Signature(VerifyError::Repeated(_)) => "signature_repeated",
        IngestError::Signature(VerifyError::Malformed(_)) => "signature_malformed",
        IngestError::Signature(VerifyError::NothingSigned) => "nothing_signed",
        IngestError::Signature(VerifyError::Mismatch) => "signature_mismatch",
        IngestError::Signature(VerifyError::Stale(_)) => "signature_stale",
        IngestError::Append(_) => "log_unavailable",
    }
}
