//! What is counted and timed on the way of webhooks and calls, for Prometheus. What can be looked up when somebody asks,
//! like the size of the log, is not kept here.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter, exemplar::HistogramWithExemplars, family::Family, histogram::Histogram,
    },
    registry::{Registry, Unit},
};

/// Bounds for what takes microseconds when all is well and seconds when it is not, in seconds.
const STEP_SECONDS: [f64; 12] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.01, 0.1, 1.0, 10.0,
];

/// Bounds for whole calls, in seconds. A provider waits 5 s at least.
const CALL_SECONDS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// The part of a provider's name where nobody knows the provider: what a sender writes is never a label.
pub const UNKNOWN: &str = "unknown";

/// Why a webhook is refused. All of them are shown from the start, so that the first one is a rise, and not a new series.
const REJECTIONS: [&str; 19] = [
    "invalid_request",
    "scope_missing",
    "address_not_allowed",
    "address_unknown",
    "headers_too_large",
    "coding_unknown",
    "payload_too_large",
    "body_malformed",
    "too_slow",
    "overloaded",
    "draining",
    "signature_missing",
    "signature_repeated",
    "signature_malformed",
    "nothing_signed",
    "signature_mismatch",
    "signature_stale",
    "log_unavailable",
    "failed",
];

/// Why one is refused of which nobody knows whose it is.
const REJECTIONS_OF_UNKNOWN: [&str; 5] = [
    "source_not_found",
    "invalid_request",
    "payload_too_large",
    "headers_too_large",
    "scope_missing",
];

/// The steps on the way of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Which source it is of.
    FindSource,
    /// Whether it is genuine.
    Verify,
    /// Of a provider that encrypts, what it says.
    Decrypt,
    /// What it means.
    Normalize,
    /// Making its event durable.
    Append,
    /// Keeping what has no meaning for us, durably.
    Quarantine,
    /// Telling the caller.
    Answer,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::FindSource,
        Self::Verify,
        Self::Decrypt,
        Self::Normalize,
        Self::Append,
        Self::Quarantine,
        Self::Answer,
    ];

    /// Its name, in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::FindSource => "find_source",
            Self::Verify => "verify",
            Self::Decrypt => "decrypt",
            Self::Normalize => "normalize",
            Self::Append => "append",
            Self::Quarantine => "quarantine",
            Self::Answer => "answer",
        }
    }
}

/// What is counted and timed.
#[derive(Debug)]
pub struct Metrics {
    ingest_seconds: Family<OfProvider, HistogramWithExemplars<Trace>>,
    step_seconds: Family<OfStep, Histogram>,
    /// Those of `step_seconds`, where they are found without a search: every webhook has five of them.
    steps: [Histogram; Step::ALL.len()],
    rejected: Family<Rejection, Counter>,
    calls: Family<Call, Counter>,
    call_seconds: Family<OfMethod, HistogramWithExemplars<Trace>>,
    stream_ends: Family<Call, Counter>,
    webhooks: Family<WebhookAnswer, Counter>,
    webhook_seconds: Family<OfProvider, HistogramWithExemplars<Trace>>,
    delivered: Counter,
    fell_behind: Counter,
    spans_lost: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    provider: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMethod {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookAnswer {
    provider: &'static str,
    status: u16,
}

/// The exemplar of a measurement: the trace that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Trace {
    /// Its id, in hex.
    pub trace_id: String,
}

impl Default for Metrics {
    fn default() -> Self {
        fn calls() -> HistogramWithExemplars<Trace> {
            HistogramWithExemplars::new(CALL_SECONDS.into_iter())
        }
        let step_seconds =
            Family::<OfStep, Histogram>::new_with_constructor(|| Histogram::new(STEP_SECONDS));
        Self {
            ingest_seconds: Family::new_with_constructor(calls as _),
            steps: Step::ALL.map(|step| {
                let step = step.name();
                step_seconds.get_or_create_owned(&OfStep { step })
            }),
            step_seconds,
            rejected: Family::default(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(calls as _),
            stream_ends: Family::default(),
            webhooks: Family::default(),
            webhook_seconds: Family::new_with_constructor(calls as _),
            delivered: Counter::default(),
            fell_behind: Counter::default(),
            spans_lost: Counter::default(),
        }
    }
}

impl Metrics {
    /// Shows what will be counted and timed of webhooks of these providers, before any has come.
    pub fn expect(&self, providers: impl IntoIterator<Item = &'static str>) {
        for provider in providers {
            for reason in REJECTIONS {
                let _ = self.rejected.get_or_create(&Rejection { provider, reason });
            }
            let _ = self.ingest_seconds.get_or_create(&OfProvider { provider });
        }
        for reason in REJECTIONS_OF_UNKNOWN {
            let provider = UNKNOWN;
            let _ = self.rejected.get_or_create(&Rejection { provider, reason });
        }
    }

    /// Shows the ends of the streams of a method, before one has ended.
    pub fn expect_stream(&self, method: &'static str) {
        let code = "OK";
        let _ = self.stream_ends.get_or_create(&Call { method, code });
    }

    /// A webhook of a provider was taken or refused, and that took so long.
    pub fn ingested(&self, provider: &'static str, took: Duration, trace: Option<Trace>) {
        let histogram = self.ingest_seconds.get_or_create(&OfProvider { provider });
        histogram.observe(took.as_secs_f64(), trace, None);
    }

    /// A step on the way of a webhook took so long.
    pub fn step(&self, step: Step, took: Duration) {
        self.steps[step as usize].observe(took.as_secs_f64());
    }

    /// A webhook was refused.
    pub fn rejected(&self, provider: &'static str, reason: &'static str) {
        let rejection = Rejection { provider, reason };
        self.rejected.get_or_create(&rejection).inc();
    }

    /// A call was answered: its method by full name, and the name of its gRPC status code.
    pub fn called(
        &self,
        method: &'static str,
        code: &'static str,
        took: Duration,
        trace: Option<Trace>,
    ) {
        self.calls.get_or_create(&Call { method, code }).inc();
        let histogram = self.call_seconds.get_or_create(&OfMethod { method });
        histogram.observe(took.as_secs_f64(), trace, None);
    }

    /// A stream that was open has ended: its method by full name, and the name of its gRPC status code.
    pub fn stream_ended(&self, method: &'static str, code: &'static str) {
        self.stream_ends.get_or_create(&Call { method, code }).inc();
    }

    /// A request at the webhook edge was answered with an HTTP status.
    pub fn webhook(
        &self,
        provider: &'static str,
        status: u16,
        took: Duration,
        trace: Option<Trace>,
    ) {
        let answer = WebhookAnswer { provider, status };
        self.webhooks.get_or_create(&answer).inc();
        let histogram = self.webhook_seconds.get_or_create(&OfProvider { provider });
        histogram.observe(took.as_secs_f64(), trace, None);
    }

    /// An event was given to a subscriber.
    pub fn delivered(&self) {
        self.delivered.inc();
    }

    /// A subscriber has fallen out of the newest events, and is served from the log.
    pub fn fell_behind(&self) {
        self.fell_behind.inc();
    }

    /// Counts the spans that were not sent.
    pub(super) fn spans_lost(&self) -> Counter {
        self.spans_lost.clone()
    }

    /// Has all of this shown by a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "ingest_duration",
            "How long a webhook took, from its bytes to a durable event or a refusal",
            Unit::Seconds,
            self.ingest_seconds.clone(),
        );
        registry.register_with_unit(
            "ingest_step_duration",
            "How long each step on the way of a webhook took",
            Unit::Seconds,
            self.step_seconds.clone(),
        );
        registry.register(
            "ingest_rejected",
            "Webhooks that were refused, by why; calls that were refused before a webhook was read are among verdict_rpc_calls",
            self.rejected.clone(),
        );
        registry.register(
            "rpc_calls",
            "Calls that were answered, by the status of the answer; of a stream, when it was opened",
            self.calls.clone(),
        );
        registry.register_with_unit(
            "rpc_duration",
            "How long a call took until the headers of its answer",
            Unit::Seconds,
            self.call_seconds.clone(),
        );
        registry.register(
            "stream_ends",
            "Streams that were open and have ended, by their status; CANCELLED if the caller went away or was cut off",
            self.stream_ends.clone(),
        );
        registry.register(
            "webhook_answers",
            "Requests at the webhook edge, by the HTTP status of the answer",
            self.webhooks.clone(),
        );
        registry.register_with_unit(
            "webhook_duration",
            "How long a request at the webhook edge took, from its headers to its answer",
            Unit::Seconds,
            self.webhook_seconds.clone(),
        );
        registry.register(
            "subscription_events",
            "Events that were given to subscribers",
            self.delivered.clone(),
        );
        registry.register(
            "subscription_fell_behind",
            "How often a subscriber fell out of the newest events and was served from the log",
            self.fell_behind.clone(),
        );
        registry.register(
            "traces_spans_lost",
            "Spans that could not be sent, because too many waited or the receiver did not take them",
            self.spans_lost.clone(),
        );
    }
}
