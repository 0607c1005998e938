//! Traces: where they come from, which are sent, and how.
//!
//! Only spans of verdict's own are sent, and none of its log lines: what an attribute may hold is decided where the span is
//! made.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{Link, SpanContext, SpanId, SpanKind, TraceContextExt, TraceId, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    resource::TelemetryResourceDetector,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingResult, SdkTracerProvider,
        ShouldSample,
    },
};
use prometheus_client::metrics::counter::Counter;
use secrecy::ExposeSecret;
use tonic::{
    metadata::MetadataMap,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tracing::{Span, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};
use uuid::Uuid;

use super::{
    logs::crate_name,
    metrics::Trace,
    queue::{Bounded, Reporting, Waiting},
};
use crate::{config::Otlp, event::NORMALIZER_VERSION, proto::TraceContext};

/// How many spans wait to be sent; more are thrown away. Each takes about a kilobyte.
const QUEUED_SPANS: usize = 16 << 10;

/// How many are sent at once, and how long they wait at most until there are so many.
const SENT_AT_ONCE: usize = 1024;
const SENT_EVERY: Duration = Duration::from_secs(1);

/// How long the end of the process waits until those are sent that are left.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// Why traces cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The certificates in `ca_file` are none, or the address is not one.
    #[error("telemetry.otlp: {0}")]
    Channel(#[from] tonic::transport::Error),
    /// The exporter refuses its settings.
    #[error("telemetry.otlp: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends traces to a receiver. What it still holds is sent when it is dropped, if that does not take long.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Sends to this receiver, once there is something to send. A thread of its own does it, whom nobody waits for. Spans
    /// that are lost are counted.
    pub(super) fn new(otlp: &Otlp, lost: Counter) -> Result<Self, ExportError> {
        let waiting = Waiting::new(QUEUED_SPANS, lost);
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUED_SPANS)
            .with_max_export_batch_size(SENT_AT_ONCE)
            .with_scheduled_delay(SENT_EVERY)
            .build();
        let exporter = Reporting {
            exporter: exporter(otlp)?,
            waiting: waiting.clone(),
        };
        let next = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { next, waiting })
            .with_sampler(Sampling::of_those_that_begin_here(otlp.sample_ratio))
            .with_resource(resource(otlp))
            .build();
        Ok(Self(provider))
    }

    /// What makes the spans of verdict spans of traces.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let is_ours =
            filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with(crate_name()));
        OpenTelemetryLayer::new(self.0.tracer(crate_name()))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(is_ours.with_max_level_hint(LevelFilter::INFO))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if self.0.shutdown_with_timeout(LAST_WAIT).is_err() {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

fn exporter(otlp: &Otlp) -> Result<OtlpExporter, ExportError> {
    let mut endpoint = Endpoint::from_shared(otlp.endpoint.clone())?
        .timeout(otlp.timeout)
        .connect_timeout(otlp.timeout);
    if otlp.endpoint.starts_with("https:") {
        let tls = ClientTlsConfig::new();
        endpoint = endpoint.tls_config(match &otlp.ca_pem {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_native_roots(),
        })?;
    }
    let headers = otlp.headers.iter().filter_map(|(name, value)| {
        // The configuration lets no other bytes pass.
        let mut value = http::HeaderValue::from_str(value.expose_secret()).ok()?;
        value.set_sensitive(true);
        Some((name.clone(), value))
    });
    let exporter = OtlpExporter::builder()
        .with_tonic()
        .with_channel(endpoint.connect_lazy())
        .with_timeout(otlp.timeout)
        .with_metadata(MetadataMap::from_headers(headers.collect()));
    Ok(exporter.build()?)
}

/// What is told of this process.
fn resource(otlp: &Otlp) -> Resource {
    #[expect(clippy::disallowed_methods, reason = "it tells processes apart")]
    let instance = Uuid::new_v4().to_string();
    let ours = [
        KeyValue::new("service.name", crate_name()),
        KeyValue::new("service.version", NORMALIZER_VERSION),
        KeyValue::new("service.instance.id", instance),
    ];
    let is_ours = |attribute: &KeyValue| !otlp.resource.contains_key(attribute.key.as_str());
    let ours = ours.into_iter().filter(is_ours);
    let configured = otlp.resource.iter();
    let configured = configured.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(ours.chain(configured))
        .build()
}

/// Which traces are sent: whoever began one decides that; of those that begin here a share is, and each that is linked to one
/// that is sent.
#[derive(Clone, Debug)]
struct Sampling(Sampler);

impl Sampling {
    fn of_those_that_begin_here(ratio: f64) -> Self {
        let share = Sampler::TraceIdRatioBased(ratio);
        Self(Sampler::ParentBased(Box::new(share)))
    }
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let begins_here = !parent.is_some_and(TraceContextExt::has_active_span);
        let is_linked = links.iter().any(|link| link.span_context.is_sampled());
        let sampler = match begins_here && is_linked {
            true => &Sampler::AlwaysOn,
            false => &self.0,
        };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

/// The trace that the headers of a request name, if they are well-formed. See <https://www.w3.org/TR/trace-context/>.
pub(crate) fn of_headers(headers: &HeaderMap) -> Option<TraceContext> {
    const MAX_STATE_BYTES: usize = 512;
    let text = |name| headers.get(name)?.to_str().ok();
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

/// Has a span that nobody has entered yet go on with a trace that began elsewhere.
pub(crate) fn go_on(span: &Span, trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        // Without traces there is nothing to be a part of.
        let _ = span.set_parent(context(trace));
    }
}

/// Has a span that nobody has entered yet be a part of another.
pub(crate) fn be_part(span: &Span, whole: &Span) {
    // Without traces there is nothing to be a part of.
    let _ = span.set_parent(whole.context());
}

/// Links a span to another, which has no say in whether it is sent.
pub(crate) fn link(span: &Span, other: &Span) {
    // From here on it is decided.
    let _ = span.context();
    let context = other.context();
    let other = context.span();
    let place = other.span_context();
    if place.is_sampled() {
        span.add_link(place.clone());
    }
}

/// A trace that began elsewhere and is sent, to be linked to.
pub(crate) fn sent(trace: &TraceContext) -> Option<SpanContext> {
    let context = context(trace).span().span_context().clone();
    context.is_sampled().then_some(context)
}

/// The place of a span in its trace, to be passed on. `None` where no traces are sent.
pub(crate) fn place(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    let span = context.span();
    let place = span.span_context();
    place.is_valid().then(|| TraceContext {
        traceparent: format!(
            "00-{}-{}-{:02x}",
            place.trace_id(),
            place.span_id(),
            place.trace_flags()
        ),
        tracestate: place.trace_state().header(),
    })
}

/// The trace of a span as an example for a measurement, if it is sent.
pub(crate) fn exemplar(span: &Span) -> Option<Trace> {
    let context = span.context();
    let span = context.span();
    let place = span.span_context();
    place.is_sampled().then(|| Trace {
        trace_id: place.trace_id().to_string(),
    })
}

/// The trace and the span that this thread is in.
pub(super) fn current_ids() -> Option<(TraceId, SpanId)> {
    Context::map_current(|context| {
        let span = context.span();
        let place = span.span_context();
        let ids = (place.trace_id(), place.span_id());
        place.is_valid().then_some(ids)
    })
}

fn context(trace: &TraceContext) -> Context {
    struct Headers<'t>(&'t TraceContext);

    impl Extractor for Headers<'_> {
        fn get(&self, name: &str) -> Option<&str> {
            match name {
                "traceparent" => Some(&self.0.traceparent),
                "tracestate" => Some(&self.0.tracestate),
                _ => None,
            }
        }

        fn keys(&self) -> Vec<&str> {
            vec!["traceparent", "tracestate"]
        }
    }

    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(trace))
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
