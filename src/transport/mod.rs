//! The network: the only place that knows tonic, requests and responses.

mod about;
mod admin;
mod admission;
mod answer;
mod auditing;
mod authorization;
mod codec;
pub mod connection;
mod detach;
mod grpc;
mod health;
mod http;
mod ingest;
mod ingest_stream;
mod list;
pub mod listener;
mod observation;
mod open;
mod ops;
mod page;
mod quarantine;
mod seat;
mod serving;
mod status;
mod subscribe;
pub mod tls;
mod verification;
mod webhook;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tonic::Request;

use crate::{
    allowance::Allowance,
    audit::Audit,
    caller::{Callers, Validity},
    config::{LogConfig, LogKind, ServerConfig},
    ingest::Ingestor,
    log::{
        EventLog,
        embedded::{EmbeddedLog, OpenError},
        memory::MemoryLog,
    },
    reload::{self, Reload},
    source::Source,
    telemetry::Telemetry,
};
use uuid::Uuid;

pub(crate) use self::codec::BoundedCodec;
pub use self::serving::max_open_files;
use self::{
    admin::Erasing,
    admission::{Rooms, Shares},
    answer::Watchman,
    health::Health,
    listener::ConnectionInfo,
    tls::{SectionError, ServerTls},
};

/// Why the server ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener or a connection failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The certificates or keys of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] SectionError),
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

/// How many bytes of webhooks all `IngestStream`s together may take at once. Each stream may hold one more request, which
/// waits for its turn.
const INGEST_STREAM_BYTES: usize = 64 << 20;

/// How many deliveries to subscribers are spans each second, of all subscribers together.
const DELIVERY_SPANS_PER_SECOND: u32 = 1000;

/// What all services share.
#[derive(Clone)]
struct Shared {
    config: Arc<ServerConfig>,
    ingestor: Arc<Ingestor>,
    log: Arc<dyn EventLog>,
    callers: Arc<Callers>,
    telemetry: Telemetry,
    started_at: jiff::Timestamp,
    /// Bounds what is served at once.
    rooms: Arc<Rooms>,
    /// Bounds what is served at once for each caller.
    shares: Arc<Shares>,
    /// Bounds what the webhooks of ingest streams take, in KiB.
    ingest_stream_kib: Arc<Semaphore>,
    /// Looks after what callers are slow to take.
    watchman: Arc<Watchman>,
    /// The webhooks that are being taken: who began one may go away.
    ingests: TaskTracker,
    /// Bounds the spans of deliveries: each event has one for every subscriber.
    delivery_spans: Arc<Allowance>,
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

/// What is served, and with what.
pub struct Service {
    /// The listeners and their limits.
    pub config: ServerConfig,
    /// Where webhooks come from.
    pub sources: Vec<Arc<Source>>,
    /// Where events go.
    pub log: Arc<dyn EventLog>,
    /// Who may call.
    pub access: Access,
    /// What operators are told by.
    pub telemetry: Telemetry,
}

/// The sockets that a server listens on.
#[derive(Debug)]
pub struct Listeners {
    /// For the gRPC services.
    pub grpc: TcpListener,
    /// For the webhooks of providers.
    pub webhook: Option<TcpListener>,
    /// For what operators ask.
    pub ops: Option<TcpListener>,
}

impl Listeners {
    /// For the gRPC services only.
    pub fn grpc(grpc: TcpListener) -> Self {
        Self {
            grpc,
            webhook: None,
            ops: None,
        }
    }
}

/// Serves until `shutdown` resolves and the calls in flight have ended, or the grace is over.
///
/// The caller owns the sockets, the log and the moment of stopping.
pub async fn run(
    service: Service,
    listeners: Listeners,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Service {
        config,
        sources,
        log,
        access,
        telemetry,
    } = service;
    let tls = ServerTls::load(&config)?;
    let draining = CancellationToken::new();
    let delay = Duration::from_secs(config.drain_delay_seconds);
    let grace = Duration::from_secs(config.shutdown_grace_seconds);
    let rooms = Rooms::new(&config);
    let shared = Shared {
        ingestor: Arc::new(Ingestor::new(
            sources,
            Arc::clone(&log),
            Arc::clone(&telemetry.metrics),
        )),
        shares: Arc::new(Shares::new(&rooms, &config, &access.callers)),
        rooms: Arc::new(rooms),
        ingest_stream_kib: Arc::new(Semaphore::new(INGEST_STREAM_BYTES / 1024)),
        watchman: Arc::default(),
        ingests: TaskTracker::new(),
        delivery_spans: Arc::new(Allowance::new(
            DELIVERY_SPANS_PER_SECOND,
            DELIVERY_SPANS_PER_SECOND,
        )),
        erasing: Erasing::default(),
        config: Arc::new(config),
        log,
        callers: Arc::clone(&access.callers),
        telemetry,
        started_at: now(),
        draining: draining.clone(),
        _watch: None,
    };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health::new(reporter).await;
    let followed = shared.follow_files(&tls);
    let ops = shared.serve_ops(listeners.ops, &tls, health.readiness());
    let webhooks = shared.serve_webhooks(listeners.webhook, tls.webhook);
    let grpc = shared.serve_grpc(access.audit, listeners.grpc, tls.grpc, health_service)?;
    let callers = access.callers;
    let ingests = shared.ingests.clone();
    let log_health = shared.log.health();
    let watchman = Arc::clone(&shared.watchman);
    drop(shared);

    // These end with the server, whichever way that ends: what operators ask is answered until everything else is over.
    let _ops = AbortOnDropHandle::new(tokio::spawn(ops));
    let _watchman = AbortOnDropHandle::new(tokio::spawn(watchman.watch()));
    let _fresh = AbortOnDropHandle::new(tokio::spawn(async move { callers.keep_fresh().await }));
    let followed = AbortOnDropHandle::new(tokio::spawn(followed));
    let serve = async {
        let (served, ()) = tokio::join!(grpc, webhooks);
        served?;
        let _ = followed.await;
        ingests.close();
        ingests.wait().await;
        Ok(())
    };
    let mut serve = pin!(serve);
    let failure = tokio::select! {
        served = &mut serve => return served,
        failure = drain(health, log_health, shutdown, delay) => failure,
    };
    draining.cancel();
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

/// Returns when the server is to stop, after load balancers had time to notice: with why, if the log has failed for good.
async fn drain(
    health: Health,
    log: watch::Receiver<crate::log::Health>,
    shutdown: impl Future<Output = ()>,
    delay: Duration,
) -> Option<String> {
    let failure = tokio::select! {
        () = shutdown => None,
        why = health.follow(log.clone()) => Some(why),
    };
    tracing::info!("shutting down");
    health.drain().await;
    let failure = match failure {
        Some(why) => Some(why),
        None if delay.is_zero() => None,
        None => tokio::select! {
            () = time::sleep(delay) => None,
            why = health.follow(log) => Some(why),
        },
    };
    health.end().await;
    failure
}

impl Shared {
    /// Follows the files of certificates and secrets.
    fn follow_files(&self, tls: &ServerTls) -> impl Future<Output = ()> + use<> {
        let sources = self.ingestor.sources().iter();
        let sources = sources.map(|source| Arc::clone(source) as Arc<dyn Reload>);
        let tls = tls.all().map(|tls| Arc::clone(tls) as Arc<dyn Reload>);
        reload::watch(
            sources.chain(tls).chain(self.callers.followed()).collect(),
            Duration::from_secs(self.config.reload_interval_seconds),
            now,
            self.draining.clone(),
        )
    }
}

/// The time, as it enters here and is passed down.
fn now() -> jiff::Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the clock of the transport")]
    jiff::Timestamp::now()
}
