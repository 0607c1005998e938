//! What operators see of each call, whatever becomes of it: a span, by the semantic conventions of OpenTelemetry for RPC, and
//! a measurement.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
    thread,
};

use http::{Request, Response};
use opentelemetry::trace::Status as SpanStatus;
use tokio::time::Instant;
use tonic::{Code as GrpcCode, body::Body};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{auditing, authorization::peer};
use crate::{
    proto::DESCRIPTORS,
    telemetry::{
        metrics::{Metrics, UNKNOWN},
        traces,
    },
};

/// The rpcs that are told apart, by their full names. Who calls anything else has chosen its name.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let of_verdict = DESCRIPTORS.services().flat_map(|service| {
        let methods = service.methods().map(|method| method.name().to_owned());
        let name = service.full_name().to_owned();
        let methods = methods.map(|method| format!("{name}/{method}"));
        methods.collect::<Vec<_>>()
    });
    let of_health = ["Check", "Watch"].map(|method| format!("grpc.health.v1.Health/{method}"));
    of_verdict.chain(of_health).collect()
});

/// A call that is being answered. One that is dropped before was given up.
pub(super) struct Observed {
    method: Option<&'static str>,
    metrics: Arc<Metrics>,
    began: Instant,
    span: Span,
    code: Option<GrpcCode>,
}

impl Observed {
    /// A call that has come. Its span goes on with the trace of its caller, which handlers find in its extensions.
    pub(super) fn begin(request: &mut Request<Body>, metrics: &Arc<Metrics>) -> Self {
        let path = request.uri().path().trim_start_matches('/');
        let method = METHODS.get(path).map(String::as_str);
        let span = info_span!(
            "rpc",
            otel.name = method.unwrap_or("grpc"),
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method.unwrap_or("_OTHER"),
            network.peer.address = peer(request).map(tracing::field::display),
        );
        let trace = traces::of_headers(request.headers());
        traces::go_on(&span, trace.as_ref());
        if let Some(trace) = trace {
            request.extensions_mut().insert(trace);
        }
        Self {
            method,
            metrics: Arc::clone(metrics),
            began: Instant::now(),
            span,
            code: None,
        }
    }

    /// What is done for the call belongs in here.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The call has its answer; a stream is open.
    pub(super) fn answered<B>(mut self, response: &Response<B>) {
        let status = response.headers().get("grpc-status");
        let number = status.and_then(|status| status.to_str().ok()?.parse().ok());
        // An answer without a status is one that will end well, as far as anybody can know yet.
        self.code = Some(number.map_or(GrpcCode::Ok, GrpcCode::from_i32));
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(match thread::panicking() {
            true => GrpcCode::Internal,
            false => GrpcCode::Cancelled,
        });
        let name = auditing::name(code);
        self.span.set_attribute("rpc.response.status_code", name);
        fault(&self.span, code);
        let trace = traces::exemplar(&self.span);
        let method = self.method.unwrap_or(UNKNOWN);
        self.metrics
            .called(method, name, self.began.elapsed(), trace);
    }
}

/// Marks a span as failed if that is the server's fault.
pub(super) fn fault(span: &Span, code: GrpcCode) {
    let is_ours = match code {
        GrpcCode::Unknown
        | GrpcCode::DeadlineExceeded
        | GrpcCode::Unimplemented
        | GrpcCode::Internal
        | GrpcCode::Unavailable
        | GrpcCode::DataLoss => true,
        GrpcCode::Ok
        | GrpcCode::Cancelled
        | GrpcCode::InvalidArgument
        | GrpcCode::NotFound
        | GrpcCode::AlreadyExists
        | GrpcCode::PermissionDenied
        | GrpcCode::ResourceExhausted
        | GrpcCode::FailedPrecondition
        | GrpcCode::Aborted
        | GrpcCode::OutOfRange
        | GrpcCode::Unauthenticated => false,
    };
    if is_ours {
        span.set_attribute("error.type", auditing::name(code));
        span.set_status(SpanStatus::error(""));
    }
}
