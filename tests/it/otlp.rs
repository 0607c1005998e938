//! A receiver of traces: what a collector is, as far as verdict can tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1 as wire,
};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, ServerTlsConfig},
};

use crate::pki::Pair;

/// Receives, on a thread of its own, whatever the test waits for.
pub(crate) struct Receiver {
    /// Where it is.
    pub(crate) url: String,
    received: Received,
    _stop: oneshot::Sender<()>,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<(MetadataMap, ExportTraceServiceRequest)>>>);

/// A span, as it has arrived.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) kind: wire::span::SpanKind,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    /// Empty for one that begins a trace.
    pub(crate) parent_id: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// The traces and spans that it is linked to.
    pub(crate) links: Vec<(String, String)>,
    pub(crate) is_error: bool,
    /// From when to when, in nanoseconds.
    pub(crate) time: Range<u64>,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.lock().push((metadata, request));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, Vec<(MetadataMap, ExportTraceServiceRequest)>> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Receiver {
    pub(crate) fn start() -> Self {
        Self::start_with(None)
    }

    pub(crate) fn start_tls(pair: &Pair) -> Self {
        Self::start_with(Some(pair))
    }

    fn start_with(pair: Option<&Pair>) -> Self {
        let received = Received::default();
        let mut server = Server::builder();
        if let Some(pair) = pair {
            let tls = ServerTlsConfig::new().identity(pair.identity());
            server = server.tls_config(tls).expect("a certificate");
        }
        let server = server.add_service(TraceServiceServer::new(received.clone()));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("an address").port();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                socket.set_nonblocking(true).expect("a socket");
                let listener = tokio::net::TcpListener::from_std(socket).expect("a socket");
                let incoming = TcpListenerStream::new(listener);
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        let (scheme, host) = match pair {
            Some(_) => ("https", "localhost"),
            None => ("http", "127.0.0.1"),
        };
        Self {
            url: format!("{scheme}://{host}:{port}"),
            received,
            _stop: stop,
        }
    }

    /// All that has arrived.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let received = self.received.lock();
        let of_resources = received
            .iter()
            .flat_map(|(_, request)| &request.resource_spans);
        let of_scopes = of_resources.flat_map(|resource| &resource.scope_spans);
        of_scopes.flat_map(|scope| &scope.spans).map(span).collect()
    }

    /// What came along with every request.
    pub(crate) fn metadata(&self, name: &str) -> BTreeSet<String> {
        let received = self.received.lock();
        let values = received.iter().map(|(metadata, _)| {
            let value = metadata.get(name).expect("it comes with every request");
            value.to_str().expect("text").to_owned()
        });
        values.collect()
    }

    /// What was told of the process, each time.
    pub(crate) fn resources(&self) -> Vec<BTreeMap<String, String>> {
        let received = self.received.lock();
        let resources = received
            .iter()
            .flat_map(|(_, request)| &request.resource_spans);
        let resources = resources.filter_map(|of| of.resource.as_ref());
        resources
            .map(|resource| attributes(&resource.attributes))
            .collect()
    }

    /// Everything that has arrived, to search in.
    pub(crate) fn text(&self) -> String {
        format!("{:?}", self.received.lock())
    }
}

fn span(span: &wire::Span) -> Span {
    // Nobody may write into a trace what was meant for the log.
    assert!(span.events.is_empty(), "{span:?}");
    Span {
        name: span.name.clone(),
        kind: span.kind(),
        trace_id: base16ct::lower::encode_string(&span.trace_id),
        span_id: base16ct::lower::encode_string(&span.span_id),
        parent_id: base16ct::lower::encode_string(&span.parent_span_id),
        attributes: attributes(&span.attributes),
        links: span
            .links
            .iter()
            .map(|link| {
                (
                    base16ct::lower::encode_string(&link.trace_id),
                    base16ct::lower::encode_string(&link.span_id),
                )
            })
            .collect(),
        is_error: span.status.as_ref().is_some_and(|status| {
            assert_eq!(status.message, "");
            status.code() == wire::status::StatusCode::Error
        }),
        time: span.start_time_unix_nano..span.end_time_unix_nano,
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let texts = pairs.iter().map(|pair| {
        let value = pair.value.as_ref().and_then(|value| value.value.clone());
        match value {
            Some(Value::StringValue(text)) => (pair.key.clone(), text),
            Some(Value::IntValue(number)) => (pair.key.clone(), number.to_string()),
            other => panic!("{}: {other:?}", pair.key),
        }
    });
    let collected: BTreeMap<_, _> = texts.collect();
    assert_eq!(collected.len(), pairs.len(), "one value each: {pairs:?}");
    collected
}
