//! The network: the only place that knows tonic, requests and responses.

mod admin;
mod grpc;
mod status;

use std::{io, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore, time};
use tokio_util::sync::CancellationToken;
use tonic::{
    codec::CompressionEncoding,
    transport::{Server, server::TcpIncoming},
};
use tower::util::MapResponseLayer;

use crate::{
    config::{LogConfig, LogKind, ServerConfig},
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
    source::Source,
};
use uuid::Uuid;

/// Why the server ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener or a connection failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The socket could not be set up.
    #[error("the listener cannot be used: {0}")]
    Listener(#[from] io::Error),
    /// The descriptors for reflection are broken.
    #[error("reflection is broken: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Opens the log. Blocks.
pub fn open_log(config: &LogConfig) -> Result<Arc<dyn EventLog>, OpenError> {
    #[expect(clippy::disallowed_methods, reason = "a new log gets a new name")]
    let new_id = Uuid::new_v4();
    Ok(match config.kind {
        LogKind::Embedded => Arc::new(EmbeddedLog::open(&config.path, new_id)?),
        LogKind::Memory => Arc::new(MemoryLog::new(new_id)),
    })
}

/// What all services share.
#[derive(Clone)]
struct Shared {
    config: Arc<ServerConfig>,
    ingestor: Arc<Ingestor>,
    log: Arc<dyn EventLog>,
    /// Bounds the webhooks that are being taken.
    ingests: Arc<Semaphore>,
    /// Cancelled when the server begins to shut down.
    draining: CancellationToken,
}

/// Serves until `shutdown` resolves and the calls in flight have ended, or the grace is over.
///
/// The caller owns the socket, the log and the moment of stopping.
pub async fn run(
    config: ServerConfig,
    sources: Vec<Arc<Source>>,
    log: Arc<dyn EventLog>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let draining = CancellationToken::new();
    let grace = Duration::from_secs(config.shutdown_grace_seconds);
    let shared = Shared {
        ingestor: Arc::new(Ingestor::new(sources, Arc::clone(&log))),
        ingests: Arc::new(Semaphore::new(config.max_concurrent_ingests)),
        config: Arc::new(config),
        log,
        draining: draining.clone(),
    };
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_serving::<VerdictServiceServer<grpc::Verdict>>()
        .await;
    health_reporter
        .set_serving::<AdminServiceServer<admin::Admin>>()
        .await;
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients can show the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };

    let keepalive = Duration::from_secs(shared.config.keepalive_interval_seconds);
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(keepalive));
    let server = Server::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(Duration::from_secs(
            shared.config.keepalive_timeout_seconds,
        )))
        .max_concurrent_streams(shared.config.max_concurrent_streams_per_connection)
        // Errors that tonic makes itself get the details that all our errors have.
        .layer(MapResponseLayer::new(status::with_details))
        .add_service(verdict_service(&shared))
        .add_service(admin_service(&shared))
        .add_service(health)
        .add_service(descriptors().build_v1()?)
        .add_service(descriptors().build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming, draining.clone().cancelled_owned());

    let drain = async {
        shutdown.await;
        tracing::info!("shutting down");
        health_reporter
            .set_not_serving::<VerdictServiceServer<grpc::Verdict>>()
            .await;
        health_reporter
            .set_not_serving::<AdminServiceServer<admin::Admin>>()
            .await;
        health_reporter
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        draining.cancel();
        // A client that reads nothing could hold its connection for ever.
        time::sleep(grace).await;
        tracing::warn!("calls in flight did not end in time");
    };
    tokio::select! {
        served = server => Ok(served?),
        () = drain => Ok(()),
    }
}

fn verdict_service(shared: &Shared) -> VerdictServiceServer<grpc::Verdict> {
    VerdictServiceServer::new(grpc::Verdict(shared.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(max_request_bytes(&shared.config))
}

fn admin_service(shared: &Shared) -> AdminServiceServer<admin::Admin> {
    AdminServiceServer::new(admin::Admin(shared.clone()))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(max_request_bytes(&shared.config))
}

/// Room for the largest webhook that is allowed, and for what surrounds it in a request. It also bounds what a
/// compressed request may become.
fn max_request_bytes(config: &ServerConfig) -> usize {
    const FRAME: usize = 64 << 10;
    config.max_payload_bytes + 2 * config.max_header_bytes + FRAME
}
