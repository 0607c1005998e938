//! HTTP/1.1, for those who do not speak gRPC: providers, and what watches over the server.

use std::{future::poll_fn, io, pin, time::Duration};

use axum::Router;
use futures_util::StreamExt;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tower::ServiceExt;

use super::{connection::Connection, listener::Listener};

/// How long a client is given to read its last answer.
const LINGER: Duration = Duration::from_secs(1);

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
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        Box::pin(router.clone().oneshot(request))
    });
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_bytes.max(LEAST_BUFFER_BYTES))
        .serve_connection(TokioIo::new(connection), service);
    let ended = tokio::select! {
        ended = poll_fn(|context| served.poll_without_shutdown(context)) => ended,
        () = closing.cancelled() => {
            pin::Pin::new(&mut served).graceful_shutdown();
            poll_fn(|context| served.poll_without_shutdown(context)).await
        }
    };
    match ended {
        Ok(()) => {
            let connection = served.into_parts().io.into_inner();
            let _told_or_not = time::timeout(LINGER, linger(connection)).await;
        }
        Err(error) => tracing::debug!(%error, "a connection has failed"),
    }
}

/// Ends a connection in order. A client may still be sending what nobody wants to read: closing over that would take the
/// answer from it.
async fn linger(mut connection: Connection) -> io::Result<()> {
    connection.shutdown().await?;
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await?;
    Ok(())
}
