//! What is served on each of the three listeners, and within which limits.

use std::{sync::Arc, time::Duration};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, transport::Server};
use tonic_health::pb::health_server::HealthServer;
use tower::util::MapResponseLayer;

use super::{
    ServeError, Shared, admin,
    admission::{Admitted, Room},
    auditing::Auditor,
    authorization::{Authorization, Gate},
    grpc, health, http,
    listener::{HTTP1, HTTP2, Limits, Listener, MAX_OPENING},
    open::{MAX_HEALTH_REQUEST_BYTES, MAX_REFLECTION_REQUEST_BYTES, Open, Places},
    ops, status,
    tls::{ServerTls, Tls},
    webhook,
};
use crate::{
    audit::Audit,
    caller::Callers,
    config::{Reflection, ServerConfig},
    proto::{
        self, admin_service_server::AdminServiceServer,
        verdict_service_server::VerdictServiceServer,
    },
};

/// What a caller may send ahead on one call.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// What a caller may send ahead on all calls of a connection: 32 of its streams can be held back without harm to the
/// others.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// How many connections there may be to what operators ask. Some are enough for them, but whoever can connect can open more,
/// and a probe must find a place all the same.
const MAX_OPS_CONNECTIONS: usize = 1024;

impl Shared {
    /// Serves the gRPC services.
    pub(super) fn serve_grpc<H>(
        &self,
        audit: Option<Audit>,
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        health: HealthServer<H>,
    ) -> Result<impl Future<Output = Result<(), ServeError>> + use<H>, ServeError>
    where
        H: tonic_health::pb::health_server::Health,
    {
        let places = Places::new(self.draining.clone(), Arc::clone(&self.watchman));
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
        let reflection = self.config.reflection != Reflection::Off;
        let v1 = reflection.then(|| descriptors().build_v1()).transpose()?;
        let v1 = v1.map(|service| service.max_decoding_message_size(MAX_REFLECTION_REQUEST_BYTES));
        let v1 = v1.map(|service| Open::new(service, &places));
        let v1alpha = reflection.then(|| descriptors().build_v1alpha());
        let v1alpha = v1alpha.transpose()?;
        let v1alpha =
            v1alpha.map(|service| service.max_decoding_message_size(MAX_REFLECTION_REQUEST_BYTES));
        let v1alpha = v1alpha.map(|service| Open::new(service, &places));
        let gate = Gate::new(
            Arc::clone(&self.callers),
            self.config.reflection,
            Auditor::new(audit, &self.callers, self.ingests.clone()),
            Arc::clone(&self.shares),
            Arc::clone(&self.telemetry.metrics),
            Duration::from_secs(self.config.call_timeout_seconds),
        );
        let keepalive = Duration::from_secs(self.config.keepalive_interval_seconds);
        let limits = connection_limits(&self.config, &self.callers);
        let listener = Listener::new(listener, tls, HTTP2, limits, self.draining.clone());
        let listener = listener.within(&self.rooms.connections);
        let server = Server::builder()
            .http2_keepalive_interval(Some(keepalive))
            .http2_keepalive_timeout(Some(Duration::from_secs(
                self.config.keepalive_timeout_seconds,
            )))
            // What a held-back stream has sent ahead stays unread; the other calls of its connection need room beside it.
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_header_list_size(self.config.max_metadata_bytes)
            .max_concurrent_streams(self.config.max_concurrent_streams_per_connection)
            // Asks the client to leave, and lets its calls go on; the listener ends streams and, after the grace, all. Given
            // a grace too, tonic would close the connection without having asked.
            .max_connection_age(Duration::from_secs(self.config.max_connection_age_seconds))
            // Errors that tonic makes itself get the details that all our errors have.
            .layer(MapResponseLayer::new(status::with_details))
            .layer(Authorization(Arc::new(gate)))
            .add_service(verdict_service(self))
            .add_service(admin_service(self))
            .add_service(health)
            .add_optional_service(v1)
            .add_optional_service(v1alpha)
            .serve_with_incoming_shutdown(listener, self.draining.clone().cancelled_owned());
        Ok(async { Ok(server.await?) })
    }

    /// Serves the webhook edge, if there is a socket for it.
    pub(super) fn serve_webhooks(
        &self,
        listener: Option<TcpListener>,
        tls: Option<Arc<Tls>>,
    ) -> impl Future<Output = ()> + use<> {
        let room = &self.rooms.webhook_connections;
        let router = webhook::router(self);
        self.serve_http(listener, tls, room, router, self.draining.clone())
    }

    /// Serves what operators ask, if there is a socket for it, to the very end.
    pub(super) fn serve_ops(
        &self,
        listener: Option<TcpListener>,
        tls: &ServerTls,
        readiness: health::Readiness,
    ) -> impl Future<Output = ()> + use<> {
        let room = Room::new("connections are open", MAX_OPS_CONNECTIONS);
        let router = ops::router(self, tls, readiness);
        let tls = tls.ops.clone();
        self.serve_http(listener, tls, &room, router, CancellationToken::new())
    }

    /// Serves HTTP to clients whom nobody asks who they are.
    fn serve_http(
        &self,
        listener: Option<TcpListener>,
        tls: Option<Arc<Tls>>,
        room: &Room,
        router: Router,
        closing: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let limits = Limits {
            max_connections: room.most(),
            proof_timeout: None,
            ..connection_limits(&self.config, &self.callers)
        };
        let head = http::HeadLimits {
            timeout: Duration::from_secs(self.config.webhook_read_timeout_seconds),
            max_headers: self.config.max_headers,
            max_bytes: self.config.max_header_bytes,
        };
        let listener = listener.map(|listener| {
            Listener::new(listener, tls, HTTP1, limits, closing.clone()).within(room)
        });
        async move {
            if let Some(listener) = listener {
                http::serve(listener, router, head, closing).await;
            }
        }
    }
}

/// How many file descriptors connections may need at once: those that are open and those that are being opened.
pub fn max_open_files(config: &ServerConfig) -> usize {
    let listeners = [
        Some(config.max_connections),
        config
            .webhook_listen
            .map(|_| config.webhook_max_connections),
        config.ops_listen.map(|_| MAX_OPS_CONNECTIONS),
    ];
    let connections = listeners.into_iter().flatten();
    connections.map(|open| open + MAX_OPENING).sum()
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
