//! The network: the only place that knows tonic, requests and responses.

mod about;
mod admin;
mod admission;
mod answer;
mod auditing;
mod authorization;
mod codec;
pub mod connection;
mod grpc;
mod health;
mod ingest;
mod ingest_stream;
mod list;
pub mod listener;
mod open;
mod page;
mod quarantine;
mod seat;
mod status;
mod subscribe;
pub mod tls;
mod verification;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore, time};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tonic::{Request, codec::CompressionEncoding, transport::Server};
use tonic_health::ServingStatus;
use tower::util::MapResponseLayer;

use crate::{
    audit::Audit,
    caller::{Callers, Validity},
    config::{LogConfig, LogKind, Reflection, ServerConfig},
    ingest::Ingestor,
    log::{
        EventLog,
        embedded::{EmbeddedLog, OpenError},
        memory::MemoryLog,
    },
    proto::{
        self, admin_service_server::AdminServiceServer,
        verdict_service_server::VerdictServiceServer,
    },
    reload::{self, Reload},
    source::Source,
};
use uuid::Uuid;

pub(crate) use self::codec::BoundedCodec;
use self::{
    admin::Erasing,
    admission::{Admitted, Rooms, Shares},
    auditing::Auditor,
    authorization::{Authorization, Gate},
    listener::{ConnectionInfo, HTTP2, Limits, Listener},
    open::{MAX_HEALTH_REQUEST_BYTES, MAX_REFLECTION_REQUEST_BYTES, Open, Places},
    tls::{Tls, TlsError},
};

/// Why the server ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener or a connection failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The certificates or keys of TLS cannot be used.
    #[error("server.tls: {0}")]
    Tls(#[from] TlsError),
    /// The descriptors for reflection are broken.
    #[error("reflection is broken: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The log has failed for good.
    #[error(
        "the log failed and cannot be written any more: {0}; restart verdict, which reads the disk again"
    )]
    Log(String),
}

/// Opens the log. Blocks.
pub fn open_log(config: &LogConfig) -> Result<Arc<dyn EventLog>, OpenError> {
    #[expect(clippy::disallowed_methods, reason = "a new log gets a new name")]
    let new_id = Uuid::new_v4();
    Ok(match config.kind {
        LogKind::Embedded => Arc::new(EmbeddedLog::open(config, new_id)?),
        LogKind::Memory => Arc::new(MemoryLog::new(new_id, config.unverified)),
    })
}

/// What a caller may send ahead on one call.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// What a caller may send ahead on all calls of a connection: 32 of its streams can be held back without harm to the
/// others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// How many bytes of webhooks all `IngestStream`s together may take at once. Each stream may hold one more request, which
/// waits for its turn.
const INGEST_STREAM_BYTES: usize = 64 << 20;

/// What all services share.
#[derive(Clone)]
struct Shared {
    config: Arc<ServerConfig>,
    ingestor: Arc<Ingestor>,
    log: Arc<dyn EventLog>,
    callers: Arc<Callers>,
    started_at: jiff::Timestamp,
    /// Bounds what is served at once.
    rooms: Arc<Rooms>,
    /// Bounds what is served at once for each caller.
    shares: Arc<Shares>,
    /// Bounds what the webhooks of ingest streams take, in KiB.
    ingest_stream_kib: Arc<Semaphore>,
    /// The webhooks that are being taken: who began one may go away.
    ingests: TaskTracker,
    /// Whom somebody is being told to erase.
    erasing: Erasing,
    /// Cancelled when the server begins to shut down; for a stream, also when its connection is to be left.
    draining: CancellationToken,
    /// Of a stream: what ends it with the proof of who has opened it.
    _watch: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Shared {
    /// What a stream shares, which ends with its connection, or with the proof of who has opened it.
    fn for_stream_of<T>(&self, request: &Request<T>) -> Self {
        let connection = request.extensions().get::<ConnectionInfo>();
        let closing = connection.map_or(&self.draining, |connection| &connection.closing);
        let draining = closing.child_token();
        let validity = request.extensions().get::<Validity>();
        let validity = validity.filter(|validity| !validity.is_endless());
        let watch = validity.cloned().map(|validity| {
            let draining = draining.clone();
            let watch = tokio::spawn(async move {
                validity.over(now()).await;
                draining.cancel();
            });
            Arc::new(AbortOnDropHandle::new(watch))
        });
        Self {
            draining,
            _watch: watch,
            ..self.clone()
        }
    }
}

/// Who may call, and what is recorded of it.
#[derive(Clone, Debug)]
pub struct Access {
    /// Who may call.
    pub callers: Arc<Callers>,
    /// Where it is recorded, if it is.
    pub audit: Option<Audit>,
}

impl Access {
    /// For whoever can connect; nothing is recorded.
    pub fn anyone() -> Self {
        Self {
            callers: Arc::new(Callers::anyone()),
            audit: None,
        }
    }
}

/// Serves until `shutdown` resolves and the calls in flight have ended, or the grace is over.
///
/// The caller owns the socket, the log and the moment of stopping.
pub async fn run(
    config: ServerConfig,
    sources: Vec<Arc<Source>>,
    log: Arc<dyn EventLog>,
    access: Access,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let tls = load_tls(&config)?.map(Arc::new);
    let draining = CancellationToken::new();
    let grace = Duration::from_secs(config.shutdown_grace_seconds);
    let rooms = Rooms::new(&config);
    let shared = Shared {
        ingestor: Arc::new(Ingestor::new(sources, Arc::clone(&log))),
        shares: Arc::new(Shares::new(&rooms, &config, &access.callers)),
        rooms: Arc::new(rooms),
        ingest_stream_kib: Arc::new(Semaphore::new(INGEST_STREAM_BYTES / 1024)),
        ingests: TaskTracker::new(),
        erasing: Erasing::default(),
        config: Arc::new(config),
        log,
        callers: Arc::clone(&access.callers),
        started_at: now(),
        draining: draining.clone(),
        _watch: None,
    };
    let ingests = shared.ingests.clone();
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health::report(&health_reporter, ServingStatus::Serving).await;
    let places = Places::new(draining.clone());
    let health = Open::new(
        health.max_decoding_message_size(MAX_HEALTH_REQUEST_BYTES),
        &places,
    );
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients can show the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };

    let reflection = shared.config.reflection != Reflection::Off;
    let v1 = reflection.then(|| descriptors().build_v1()).transpose()?;
    let v1 = v1.map(|service| service.max_decoding_message_size(MAX_REFLECTION_REQUEST_BYTES));
    let v1 = v1.map(|service| Open::new(service, &places));
    let v1alpha = reflection.then(|| descriptors().build_v1alpha());
    let v1alpha = v1alpha.transpose()?;
    let v1alpha =
        v1alpha.map(|service| service.max_decoding_message_size(MAX_REFLECTION_REQUEST_BYTES));
    let v1alpha = v1alpha.map(|service| Open::new(service, &places));
    let gate = Gate::new(
        Arc::clone(&access.callers),
        shared.config.reflection,
        Auditor::new(access.audit, &access.callers, shared.ingests.clone()),
        Arc::clone(&shared.shares),
        Duration::from_secs(shared.config.call_timeout_seconds),
    );
    let keepalive = Duration::from_secs(shared.config.keepalive_interval_seconds);
    let sources = shared.ingestor.sources().iter();
    let sources = sources.map(|source| Arc::clone(source) as Arc<dyn Reload>);
    let tls_files = tls.iter().map(|tls| Arc::clone(tls) as Arc<dyn Reload>);
    let reloading = reload::watch(
        sources
            .chain(tls_files)
            .chain(access.callers.followed())
            .collect(),
        Duration::from_secs(shared.config.reload_interval_seconds),
        now,
        draining.clone(),
    );
    let limits = connection_limits(&shared.config, &access.callers);
    let listener = Listener::new(listener, tls, HTTP2, limits, draining.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(Duration::from_secs(
            shared.config.keepalive_timeout_seconds,
        )))
        // What a held-back stream has sent ahead stays unread; the other calls of its connection need room beside it.
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(shared.config.max_metadata_bytes)
        .max_concurrent_streams(shared.config.max_concurrent_streams_per_connection)
        // Asks the client to leave, and lets its calls go on; the listener ends streams and, after the grace, all. Given a
        // grace too, tonic would close the connection without having asked.
        .max_connection_age(Duration::from_secs(
            shared.config.max_connection_age_seconds,
        ))
        // Errors that tonic makes itself get the details that all our errors have.
        .layer(MapResponseLayer::new(status::with_details))
        .layer(Authorization(Arc::new(gate)))
        .add_service(verdict_service(&shared))
        .add_service(admin_service(&shared))
        .add_service(health)
        .add_optional_service(v1)
        .add_optional_service(v1alpha)
        .serve_with_incoming_shutdown(listener, draining.clone().cancelled_owned());

    let end = async {
        let failure = tokio::select! {
            () = shutdown => None,
            why = health::follow(&health_reporter, shared.log.health()) => Some(why),
        };
        tracing::info!("shutting down");
        health::end(health_reporter).await;
        draining.cancel();
        failure
    };
    let reloading = AbortOnDropHandle::new(tokio::spawn(reloading));
    let serve = async {
        server.await?;
        let _ = reloading.await;
        ingests.close();
        ingests.wait().await;
        Ok(())
    };
    // Ends with the server, whichever way that ends.
    let callers = access.callers;
    let _fresh = AbortOnDropHandle::new(tokio::spawn(async move { callers.keep_fresh().await }));
    let mut serve = pin!(serve);
    let failure = tokio::select! {
        served = &mut serve => return served,
        failure = end => failure,
    };
    // A client that reads nothing could hold its connection for ever.
    let served = time::timeout(grace, serve).await.unwrap_or_else(|_| {
        tracing::warn!("calls in flight did not end in time");
        Ok(())
    });
    match failure {
        Some(why) => Err(ServeError::Log(why)),
        None => served,
    }
}

/// Reads the certificates and keys of TLS, if the configuration asks for it. Blocks.
pub fn load_tls(config: &ServerConfig) -> Result<Option<Tls>, TlsError> {
    let load = |tls| Tls::load(tls, HTTP2);
    config.tls.clone().map(load).transpose()
}

fn connection_limits(config: &ServerConfig, callers: &Callers) -> Limits {
    let proof_timeout = Duration::from_secs(config.call_timeout_seconds);
    Limits {
        max_connections: config.max_connections,
        handshake_timeout: Duration::from_secs(config.handshake_timeout_seconds),
        proof_timeout: callers.are_asked().then_some(proof_timeout),
        write_timeout: Duration::from_secs(config.write_timeout_seconds),
        max_age: Duration::from_secs(config.max_connection_age_seconds),
        grace: Duration::from_secs(config.max_connection_age_grace_seconds),
    }
}

/// The time, as it enters here and is passed down.
fn now() -> jiff::Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the clock of the transport")]
    jiff::Timestamp::now()
}

fn verdict_service(shared: &Shared) -> Admitted<VerdictServiceServer<grpc::Verdict>> {
    let service = VerdictServiceServer::new(grpc::Verdict(shared.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(max_request_bytes(&shared.config));
    Admitted::new(service, shared)
}

fn admin_service(shared: &Shared) -> Admitted<AdminServiceServer<admin::Admin>> {
    const MAX_REQUEST_BYTES: usize = 64 << 10;
    let service = AdminServiceServer::new(admin::Admin(shared.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    Admitted::new(service, shared)
}

/// Room for the largest webhook that is allowed, and for what surrounds it in a request. It also bounds what a
/// compressed request may become.
fn max_request_bytes(config: &ServerConfig) -> usize {
    const FRAME: usize = 64 << 10;
    config.max_payload_bytes + 2 * config.max_header_bytes + FRAME
}
