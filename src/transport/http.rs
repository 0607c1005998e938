//! HTTP/1.1, for those who do not speak gRPC: providers, and what watches over the server.

use std::{pin::pin, time::Duration};

use axum::{Extension, Router};
use futures_util::StreamExt;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{connection::Connection, listener::Listener};

/// What a request may have before its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    /// How long it may take to arrive.
    pub(super) timeout: Duration,
    /// How many headers it may have.
    pub(super) max_headers: usize,
    /// How many bytes they may have.
    pub(super) max_bytes: usize,
}

/// Serves until `draining` is cancelled and the requests in flight are answered. Dropped before, it cuts them off. The
/// requests have a [`ConnectionInfo`](super::listener::ConnectionInfo) in their extensions.
pub(super) async fn serve(
    mut listener: Listener,
    router: Router,
    limits: HeadLimits,
    draining: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(Ok(connection)) = listener.next() => {
                connections.spawn(serve_connection(connection, router.clone(), limits));
            }
            Some(_ended) = connections.join_next() => {}
            () = draining.cancelled() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(connection: Connection, router: Router, limits: HeadLimits) {
    // hyper takes no smaller buffer.
    const LEAST_BUFFER_BYTES: usize = 8 << 10;
    let info = connection.connect_info();
    let closing = info.closing.clone();
    let service = TowerToHyperService::new(router.layer(Extension(info)));
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.timeout)
            .max_headers(limits.max_headers)
            .max_buf_size(limits.max_bytes.max(LEAST_BUFFER_BYTES))
            .serve_connection(TokioIo::new(connection), service)
    );
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = closing.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection has failed");
    }
}
