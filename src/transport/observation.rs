//! What operators see of each call, whatever becomes of it: a span, by the semantic conventions of OpenTelemetry for RPC, and
//! a measurement.

use std::{
    collections::HashSet,
    mem,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::trace::Status as SpanStatus;
use tokio::time::Instant;
use tonic::{Code as GrpcCode, Status, body::Body};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{auditing, authorization::peer, status};
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

/// The rpc whose request is a webhook.
const INGEST: &str = "verdict.v1.VerdictService/Ingest";

/// Those of them whose answer is a stream.
static STREAMS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let methods = DESCRIPTORS.services().flat_map(|service| {
        let methods = service.methods();
        let streams = methods.filter(|method| method.is_server_streaming());
        let names = streams.map(|method| (service.full_name().to_owned(), method));
        names.collect::<Vec<_>>()
    });
    methods
        .map(|(service, method)| format!("{service}/{}", method.name()))
        .collect()
});

/// A call that is being answered. One that is dropped before was given up.
pub(super) struct Observed {
    method: Option<&'static str>,
    metrics: Arc<Metrics>,
    began: Instant,
    span: Span,
    /// The step in which it is found out who calls. Whose trace it is in follows from what is found.
    authenticating: Span,
    code: Option<GrpcCode>,
}

impl Observed {
    /// A call that anybody may make, and that probes make all day: it is counted, and no span.
    pub(super) fn unspanned(request: &Request<Body>, metrics: &Arc<Metrics>) -> Self {
        Self {
            method: method(request),
            metrics: Arc::clone(metrics),
            began: Instant::now(),
            span: Span::none(),
            authenticating: Span::none(),
            code: None,
        }
    }

    /// A call that has come. It is not known yet who calls, so nothing may enter its span before [`Self::authenticated`].
    pub(super) fn begin(request: &Request<Body>, metrics: &Arc<Metrics>) -> Self {
        let mut observed = Self::unspanned(request, metrics);
        let method = observed.method;
        observed.span = info_span!(
            "rpc",
            otel.name = method.unwrap_or("grpc"),
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method.unwrap_or("_OTHER"),
            network.peer.address = peer(request).map(tracing::field::display),
        );
        observed.authenticating = info_span!(parent: None, "step", otel.name = "authenticate");
        observed
    }

    /// It was found out who calls, or that nobody knows them. The call goes on with the trace of a known caller, which
    /// handlers find in its extensions; nobody else can have us write into a trace, or decide what is sent.
    pub(super) fn authenticated(&mut self, request: &mut Request<Body>, is_known: bool) {
        let trace = traces::of_headers(request.headers()).filter(|_| is_known);
        traces::go_on(&self.span, trace.as_ref());
        if let Some(trace) = trace {
            request.extensions_mut().insert(trace);
        }
        self.end_authenticating();
    }

    fn end_authenticating(&mut self) {
        let step = mem::replace(&mut self.authenticating, Span::none());
        if !step.is_none() {
            traces::be_part(&step, &self.span);
        }
    }

    /// What is done for the call belongs in here.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The call has its answer. If that is a stream that is open now, its end is seen too.
    pub(super) fn answered(mut self, response: Response<Body>) -> Response<Body> {
        let code = code(response.headers());
        if self.method == Some(INGEST)
            && let Some(reason) = status::unread_by_tonic(response.headers())
        {
            self.metrics.rejected(UNKNOWN, reason);
        }
        // An answer without a status is one that will end well, as far as anybody can know yet.
        self.code = Some(code.unwrap_or(GrpcCode::Ok));
        match self.method.filter(|method| STREAMS.contains(*method)) {
            Some(method) if code.is_none() => {
                let metrics = Arc::clone(&self.metrics);
                response.map(|body| Body::new(Streamed::new(body, method, metrics)))
            }
            _ => response,
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.end_authenticating();
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

/// The method that is called, if there is one.
fn method(request: &Request<Body>) -> Option<&'static str> {
    let path = request.uri().path().trim_start_matches('/');
    METHODS.get(path).map(String::as_str)
}

/// The status in the headers or trailers of an answer.
fn code(headers: &HeaderMap) -> Option<GrpcCode> {
    let number = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(GrpcCode::from_i32(number))
}

/// Shows the ends of streams before one has ended.
pub(super) fn expect_streams(metrics: &Metrics) {
    for method in STREAMS.iter() {
        metrics.expect_stream(method);
    }
}

/// A stream that is open, as it is taken. One that is dropped before its end was given up by its caller, or cut off.
struct Streamed {
    body: Body,
    method: &'static str,
    metrics: Arc<Metrics>,
    code: GrpcCode,
}

impl Streamed {
    fn new(body: Body, method: &'static str, metrics: Arc<Metrics>) -> Self {
        Self {
            body,
            method,
            metrics,
            code: GrpcCode::Cancelled,
        }
    }
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.code = code(trailers).unwrap_or(GrpcCode::Unknown);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let code = auditing::name(self.code);
        self.metrics.stream_ended(self.method, code);
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
