//! What operators see of each request, by the semantic conventions of OpenTelemetry for HTTP: a span, and a measurement.

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{extract::Request, response::Response};
use http::Method;
use opentelemetry::trace::Status as SpanStatus;
use tracing::{Span, debug, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::answer::Refusal;
use crate::{
    source::Source,
    telemetry::{metrics::Metrics, metrics::UNKNOWN, traces},
    transport::listener::ConnectionInfo,
};

/// A request that is being answered.
pub(super) struct Observed {
    provider: &'static str,
    peer: Option<IpAddr>,
    begun: Instant,
    span: Span,
}

impl Observed {
    /// A request that has come just now, for this source if it is one that is configured. It begins a trace: what the
    /// internet says of traces is not believed. What it says of itself, a method or a path that is not ours, is not told.
    pub(super) fn begin(
        request: &Request,
        source: Option<&Arc<Source>>,
        scheme: &str,
        begun: Instant,
    ) -> Self {
        let is_post = request.method() == Method::POST;
        let peer = request.extensions().get::<ConnectionInfo>();
        let peer = peer.map(|connection| connection.peer.ip());
        let route = source.map(|_| "/webhooks/{provider}/{account}");
        let span = info_span!(
            parent: None,
            "webhook",
            otel.name = if is_post && source.is_some() { "POST /webhooks/{provider}/{account}" } else { "HTTP" },
            otel.kind = "server",
            http.request.method = if is_post { "POST" } else { "_OTHER" },
            http.route = route,
            url.scheme = scheme,
            url.path = source.map(|_| request.uri().path()),
            network.peer.address = peer.map(field::display),
        );
        Self {
            provider: source.map_or(UNKNOWN, |source| source.provider.name()),
            peer,
            begun,
            span,
        }
    }

    /// What is done for the request belongs in here.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The webhook of the request was refused before its signature was looked at. What is not posted is no webhook.
    pub(super) fn refused(&self, refusal: Refusal, metrics: &Metrics) {
        let provider = self.provider;
        if refusal != Refusal::NotPosted {
            metrics.rejected(provider, refusal.name());
        }
        let _entered = self.span.enter();
        debug!(
            provider.name = provider,
            network.peer.address = self.peer.map(field::display),
            reason = refusal.name(),
            "delivery not taken"
        );
    }

    /// The request has its answer.
    pub(super) fn answered(self, response: &Response, metrics: &Metrics) {
        let status = response.status();
        let code = i64::from(status.as_u16());
        self.span.set_attribute("http.response.status_code", code);
        if status.is_server_error() {
            self.span
                .set_attribute("error.type", status.as_str().to_owned());
            self.span.set_status(SpanStatus::error(""));
        }
        let trace = traces::exemplar(&self.span);
        metrics.webhook(self.provider, status.as_u16(), self.begun.elapsed(), trace);
    }
}
