//! What the tests share: fixtures, sources, and a server on a real port.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use prost_types::Timestamp as ProtoTimestamp;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    config::{self, LogConfig, LogKind, ServerConfig, Variables},
    event, http_file,
    keyring::{Keyring, Keys},
    log::{EventLog, NewEvent, Origin},
    proto::{
        Earliest, Header, IngestRequest, IngestResponse, IngestStatus, ListSourcesRequest,
        SubscribeMessage, SubscribeRequest, SubscribeResponse, VerificationEvent,
        admin_service_client::AdminServiceClient, subscribe_request::Start,
        verdict_service_client::VerdictServiceClient,
    },
    provider::{PROVIDERS, Provider, RawWebhook, signature::Secret},
    source::Source,
    telemetry::Telemetry,
    transport::{self, Access, Listeners, ServeError, Service},
};

/// Longer than anything here takes, so that a test that hangs fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The moment of all fixtures and of everything that tests sign without a server.
pub(crate) const NOW: &str = "2026-05-28T20:26:40Z";

pub(crate) fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

#[expect(clippy::disallowed_methods, reason = "the server has its own clock")]
pub(crate) fn real_now() -> Timestamp {
    Timestamp::now()
}

pub(crate) fn fixture_folder(provider: &str) -> PathBuf {
    Path::new("tests/fixtures").join(provider)
}

/// A webhook exactly as it arrived, from a file.
pub(crate) struct Fixture {
    pub(crate) provider: &'static dyn Provider,
    pub(crate) case: String,
    pub(crate) webhook: RawWebhook,
}

pub(crate) fn fixture(provider: &str, case: &str) -> RawWebhook {
    let path = fixture_folder(provider).join(case).with_extension("http");
    let file = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    http_file::parse(&Bytes::from(file)).expect("fixtures are requests")
}

/// Every fixture of every provider.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut fixtures = Vec::new();
    for provider in PROVIDERS {
        let folder =
            fs::read_dir(fixture_folder(provider.name())).expect("every provider has fixtures");
        let mut cases: Vec<String> = folder
            .map(|entry| entry.expect("a folder can be read").path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "http")
            })
            .map(|path| {
                path.file_stem()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        assert!(!cases.is_empty(), "{} has no fixtures", provider.name());
        cases.sort();
        fixtures.extend(cases.into_iter().map(|case| Fixture {
            provider: *provider,
            webhook: fixture(provider.name(), &case),
            case,
        }));
    }
    fixtures
}

/// The source that a provider's fixtures belong to.
pub(crate) fn fixture_source(provider: &str) -> Source {
    let path = fixture_folder(provider).join("source.toml");
    let mut loaded = config::load(Some(&path), &Variables::new()).expect("a good configuration");
    loaded.sources.pop().expect("one source")
}

/// The sources of all fixtures.
pub(crate) fn fixture_sources() -> Vec<Source> {
    PROVIDERS
        .iter()
        .map(|provider| fixture_source(provider.name()))
        .collect()
}

/// A source for one scheme of a provider, with two live secrets and, where it encrypts, no need to.
pub(crate) fn plain_source(provider: &'static dyn Provider, scheme: &str) -> Source {
    let scheme = provider
        .schemes()
        .iter()
        .find(|candidate| candidate.name == scheme);
    Source {
        schemes: vec![scheme.expect("a scheme of the provider")],
        keyring: secrets(vec![other_secret(), secret()]),
        options: provider
            .options()
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        ..fixture_source(provider.name())
    }
}

/// These secrets, and no decryption key.
pub(crate) fn secrets(secrets: Vec<Secret>) -> Keyring {
    Keyring::from(Keys {
        secrets,
        ..Keys::default()
    })
}

/// The secrets of a source, and its first decryption key only.
pub(crate) fn with_first_key(source: &Source) -> Keyring {
    let mut keys = Keys::clone(&source.keys());
    keys.decryption_keys.truncate(1);
    Keyring::from(keys)
}

pub(crate) fn secret() -> Secret {
    Secret::new("current".to_owned(), b"a secret of the tests".to_vec())
}

pub(crate) fn other_secret() -> Secret {
    Secret::new("older".to_owned(), b"another secret of the tests".to_vec())
}

/// The name of the gu1 event and the body that the tests use where any body will do. Each id makes another event.
pub(crate) fn gu1_body(id: &str) -> String {
    format!(
        r#"{{"event":"kyc.validation_approved","timestamp":"{NOW}","payload":{{"id":"{id}","entityId":"ent-{id}","status":"approved"}}}}"#
    )
}

/// Signs a body as a provider would, with the first scheme and secret of a source.
pub(crate) fn sign(source: &Source, body: impl Into<Bytes>) -> RawWebhook {
    let (scheme, secret) = (source.schemes[0], &source.keys().secrets[0]);
    scheme
        .sign(body.into(), secret, real_now())
        .expect("a body that can be signed")
}

pub(crate) fn request(provider: &str, webhook: &RawWebhook) -> IngestRequest {
    IngestRequest {
        provider: provider.to_owned(),
        payload: webhook.payload.clone(),
        headers: webhook
            .headers
            .iter()
            .map(|(name, value)| Header {
                name: name.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        ..Default::default()
    }
}

/// A signed request with a body for gu1.
pub(crate) fn gu1_request(body: impl Into<Bytes>) -> IngestRequest {
    request("gu1", &sign(&fixture_source("gu1"), body))
}

/// The real server on a port of its own.
pub(crate) struct Server {
    pub(crate) client: VerdictServiceClient<Channel>,
    pub(crate) admin: AdminServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) url: String,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

pub(crate) fn server_config() -> ServerConfig {
    config::parse("", &Variables::new())
        .expect("the defaults are good")
        .server
}

/// The defaults, for a log on disk in this directory.
pub(crate) fn log_config(directory: &Path) -> LogConfig {
    let config = config::parse("", &Variables::new()).expect("the defaults are good");
    LogConfig {
        path: directory.to_owned(),
        ..config.log
    }
}

pub(crate) fn memory_log() -> Arc<dyn EventLog> {
    let config = LogConfig {
        kind: LogKind::Memory,
        ..log_config(Path::new(""))
    };
    transport::open_log(&config).expect("a log in memory")
}

pub(crate) fn embedded_log(directory: &TempDir) -> Arc<dyn EventLog> {
    transport::open_log(&log_config(directory.path())).expect("a log on disk")
}

impl Server {
    /// A server with a log in memory and the sources of all fixtures.
    pub(crate) async fn start() -> Self {
        Self::start_with(server_config(), memory_log()).await
    }

    pub(crate) async fn start_with(config: ServerConfig, log: Arc<dyn EventLog>) -> Self {
        Self::start_from(fixture_sources(), config, log).await
    }

    pub(crate) async fn start_from(
        sources: Vec<Source>,
        config: ServerConfig,
        log: Arc<dyn EventLog>,
    ) -> Self {
        Self::start_for(sources, config, log, None).await
    }

    /// A server with TLS, and a client for it.
    pub(crate) async fn start_tls(config: ServerConfig, client: ClientTlsConfig) -> Self {
        Self::start_for(fixture_sources(), config, memory_log(), Some(client)).await
    }

    async fn start_for(
        sources: Vec<Source>,
        config: ServerConfig,
        log: Arc<dyn EventLog>,
        tls: Option<ClientTlsConfig>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let sources = sources.into_iter().map(Arc::new).collect();
        let running = tokio::spawn(transport::run(
            Service {
                config,
                sources,
                log: Arc::clone(&log),
                access: Access::anyone(),
                telemetry: Telemetry::default(),
            },
            Listeners::grpc(listener),
            stop.clone().cancelled_owned(),
        ));
        let (url, channel) = match tls {
            None => {
                let url = format!("http://{address}");
                let channel = connect(&url).await;
                (url, channel)
            }
            Some(tls) => {
                let url = format!("https://{address}");
                let channel = connect_tls(&url, tls).await.expect("a connection");
                (url, channel)
            }
        };
        Self {
            client: VerdictServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel.clone()),
            channel,
            log,
            url,
            stop,
            running,
        }
    }

    pub(crate) async fn ingest(&self, request: IngestRequest) -> Result<IngestResponse, Status> {
        let response = self.client.clone().ingest(request).await;
        response.map(tonic::Response::into_inner)
    }

    /// Ingests an event that must be new; returns the answer.
    pub(crate) async fn accept(&self, id: &str) -> IngestResponse {
        let response = self
            .ingest(gu1_request(gu1_body(id)))
            .await
            .expect("a good webhook");
        assert_eq!(response.status(), IngestStatus::Accepted);
        response
    }

    pub(crate) async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Streaming<SubscribeResponse> {
        let stream = self.client.clone().subscribe(request).await;
        stream.expect("a good subscription").into_inner()
    }

    /// Tells the server to stop, without waiting for it.
    pub(crate) fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Stops the server and waits for it. The log is closed when the caller drops its own handle.
    pub(crate) async fn stop(self) {
        let Self { stop, running, .. } = self;
        stop.cancel();
        ended(running).await.expect("the server does not fail");
    }

    /// Waits until the server has stopped by itself.
    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        ended(self.running).await
    }
}

/// What a client sends on a stream, as long as the sender lives.
pub(crate) fn requests<T: Send + 'static>() -> (mpsc::Sender<T>, ReceiverStream<T>) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, ReceiverStream::new(receiver))
}

pub(crate) async fn connect(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    endpoint.connect().await.expect("a connection")
}

/// A connection to a server that was called at least once, because with TLS 1.3 a client learns only then that it was
/// refused.
pub(crate) async fn connect_tls(url: &str, tls: ClientTlsConfig) -> Result<Channel, BoxError> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tls_config(tls)?;
    loop {
        let channel = endpoint.connect().await?;
        let mut admin = AdminServiceClient::new(channel.clone());
        match admin.list_sources(ListSourcesRequest {}).await {
            Ok(_) => return Ok(channel),
            // The connection broke before the call was on it, which hides why.
            Err(status) if status.code() == Code::Cancelled => {}
            Err(status) => return Err(status.into()),
        }
    }
}

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

async fn ended(running: JoinHandle<Result<(), ServeError>>) -> Result<(), ServeError> {
    let served = time::timeout(PATIENCE, running)
        .await
        .expect("the server stops in time");
    served.expect("the server does not panic")
}

pub(crate) fn from_earliest() -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::Earliest(Earliest {})),
        ..Default::default()
    }
}

/// The next message of a stream that must not end yet.
pub(crate) async fn next(stream: &mut Streaming<SubscribeResponse>) -> SubscribeResponse {
    let message = time::timeout(PATIENCE, stream.message())
        .await
        .expect("a message in time");
    message.expect("no error").expect("no end")
}

/// The next event of a stream, whatever comes before it.
pub(crate) async fn next_event(stream: &mut Streaming<SubscribeResponse>) -> VerificationEvent {
    loop {
        if let Some(SubscribeMessage::Event(event)) = next(stream).await.message {
            return decode(event);
        }
    }
}

pub(crate) fn decode(event: Bytes) -> VerificationEvent {
    prost::Message::decode(event).expect("an event")
}

/// Appends an event without a verification, whose id is its number.
pub(crate) async fn append(log: &Arc<dyn EventLog>, number: u128, size_bytes: usize) {
    let event = VerificationEvent {
        event_id: Uuid::from_u128(number).to_string(),
        normalizer_version: "x".repeat(size_bytes),
        ..Default::default()
    };
    let appended = log.append(NewEvent {
        event_id: Uuid::from_u128(number),
        content_sha256: [0; 32],
        verification: None,
        subject: [0; 32],
        occurred_at: None,
        received_at: ProtoTimestamp::default(),
        origin: Origin::Received,
        encoded: event::encode(event),
        delivery: Bytes::new(),
    });
    let _ = appended.await.unwrap();
}

/// The reason in an error's `google.rpc.ErrorInfo`.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "verdict");
    info.reason
}
