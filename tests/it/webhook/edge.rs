//! A server with a webhook edge, and a client that sends what a test wants, byte for byte.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use verdict::{
    config::ServerConfig,
    log::EventLog,
    proto::{
        Delivery, GetDeliveryRequest, ListSourcesRequest, OutcomeCounts, SubscribeRequest,
        SubscribeResponse, admin_service_client::AdminServiceClient, get_delivery_request::Target,
        verdict_service_client::VerdictServiceClient,
    },
    provider::RawWebhook,
    source::Source,
    telemetry::Telemetry,
    transport::{self, Access, Listeners, ServeError, Service},
};

use crate::support::{PATIENCE, connect, fixture_sources, memory_log, server_config};

/// The server.
pub(super) struct Edge {
    pub(super) address: SocketAddr,
    channel: Channel,
    telemetry: Telemetry,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Edge {
    /// With a log in memory and the sources of all fixtures.
    pub(super) async fn start() -> Self {
        Self::start_with(server_config()).await
    }

    pub(super) async fn start_with(config: ServerConfig) -> Self {
        Self::start_from(fixture_sources(), config, memory_log()).await
    }

    pub(super) async fn start_from(
        sources: Vec<Source>,
        config: ServerConfig,
        log: Arc<dyn EventLog>,
    ) -> Self {
        let grpc = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let webhook = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", grpc.local_addr().expect("an address"));
        let address = webhook.local_addr().expect("an address");
        let telemetry = Telemetry::default();
        let stop = CancellationToken::new();
        let service = Service {
            config,
            sources: sources.into_iter().map(Arc::new).collect(),
            log,
            access: Access::anyone(),
            telemetry: telemetry.clone(),
        };
        let listeners = Listeners {
            webhook: Some(webhook),
            ..Listeners::grpc(grpc)
        };
        let running = transport::run(service, listeners, stop.clone().cancelled_owned());
        Self {
            address,
            running: tokio::spawn(running),
            channel: connect(&url).await,
            telemetry,
            stop,
        }
    }

    /// Posts a webhook as its provider would.
    pub(super) async fn post(&self, path: &str, webhook: &RawWebhook) -> Answer {
        self.send(&post(path, webhook)).await
    }

    /// Sends a request on a connection of its own.
    pub(super) async fn send(&self, request: &[u8]) -> Answer {
        let mut wire = self.connect().await;
        wire.write(request).await;
        wire.answer().await
    }

    pub(super) async fn connect(&self) -> Wire {
        let stream = TcpStream::connect(self.address).await;
        Wire::new(stream.expect("a connection"))
    }

    pub(super) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> tonic::Streaming<SubscribeResponse> {
        let mut client = VerdictServiceClient::new(self.channel.clone());
        let stream = client.subscribe(request).await;
        stream.expect("a good subscription").into_inner()
    }

    /// The evidence behind an event.
    pub(super) async fn delivery(&self, event_id: String) -> Delivery {
        let request = GetDeliveryRequest {
            target: Some(Target::EventId(event_id)),
        };
        let found = self.admin().get_delivery(request).await;
        found.expect("a delivery").into_inner().delivery.unwrap()
    }

    /// How the deliveries of a provider's first source have ended.
    pub(super) async fn counts(&self, provider: &str) -> OutcomeCounts {
        let sources = self.admin().list_sources(ListSourcesRequest {}).await;
        let sources = sources.expect("the sources").into_inner().sources;
        let mut of_provider = sources.into_iter().filter(|s| s.provider == provider);
        of_provider.next().expect("a source").counts.unwrap()
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// The value of a metric, by its name and labels as they are written.
    pub(super) fn metric(&self, sample: &str) -> Option<String> {
        let mut registry = Registry::default();
        self.telemetry.metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("metrics can be written");
        let mut values = text.lines().filter_map(|line| line.strip_prefix(sample));
        values.next().map(|value| value.trim().to_owned())
    }

    /// How many requests of a provider were answered with a status.
    pub(super) fn answered(&self, provider: &str, status: u16) -> Option<String> {
        let labels = format!(r#"provider="{provider}",status="{status}""#);
        self.metric(&format!("webhook_answers_total{{{labels}}} "))
    }

    /// How many webhooks of a provider were refused for a reason.
    pub(super) fn rejected(&self, provider: &str, reason: &str) -> Option<String> {
        let labels = format!(r#"provider="{provider}",reason="{reason}""#);
        self.metric(&format!("ingest_rejected_total{{{labels}}} "))
    }

    /// Tells the server to stop, without waiting for it.
    pub(super) fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Waits for the end of the server.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let ended = time::timeout(PATIENCE, self.running).await;
        let served = ended.expect("the server stops in time");
        served.expect("no panic").expect("no error");
    }
}

/// The request that posts a webhook.
pub(super) fn post(path: &str, webhook: &RawWebhook) -> Vec<u8> {
    let headers = webhook.headers.iter();
    let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers = headers.collect::<String>();
    request(path, &headers, &webhook.payload)
}

/// A POST with these header lines, and the length of its body.
pub(super) fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: edge.test\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A connection to the edge.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    /// What came after the last answer.
    unread: Vec<u8>,
}

/// Plain or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Wire {
    pub(super) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            unread: Vec::new(),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        assert!(self.try_write(bytes).await, "it cannot be sent");
    }

    /// Writes as much as the server takes.
    pub(super) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        let written = self.stream.write_all(bytes).await;
        // TLS keeps what is not flushed.
        written.is_ok() && self.stream.flush().await.is_ok()
    }

    /// The next answer, which must have a length.
    pub(super) async fn answer(&mut self) -> Answer {
        let answer = self.try_answer().await;
        answer.expect("the connection is closed")
    }

    /// The next answer, unless the server closes the connection first.
    pub(super) async fn try_answer(&mut self) -> Option<Answer> {
        let head = self.try_head().await?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status: u16 = status.expect("a status").parse().expect("a number");
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<String, String> = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length");
        let length = length.map_or(0, |length| length.parse().expect("a length"));
        while self.unread.len() < length {
            assert!(self.read().await, "an answer was cut off");
        }
        let body = self.unread.drain(..length).collect();
        Some(Answer {
            status,
            headers,
            body: String::from_utf8(body).expect("text"),
        })
    }

    /// The head of the next answer. The body of one to a HEAD request is not there.
    pub(super) async fn head(&mut self) -> String {
        let head = self.try_head().await;
        head.expect("the connection is closed")
    }

    async fn try_head(&mut self) -> Option<String> {
        loop {
            let end = self.unread.windows(4).position(|end| end == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.unread.drain(..end + 4).collect();
                return Some(String::from_utf8(head).expect("text"));
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// Says that nothing more will be sent.
    pub(super) async fn shut_down(&mut self) {
        self.stream.shutdown().await.expect("it is open");
    }

    /// Waits until the server closes the connection; returns what it still sends.
    pub(super) async fn rest(&mut self) -> String {
        while self.read().await {}
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Whether something came.
    async fn read(&mut self) -> bool {
        let read = time::timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        read.expect("something in time").is_ok_and(|read| read > 0)
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The reason of a refusal.
    pub(super) fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert!(body["message"].is_string(), "{body}");
        body["error"].as_str().expect("a reason").to_owned()
    }
}
