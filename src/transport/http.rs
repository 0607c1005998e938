//! HTTP/1.1, for those who do not speak gRPC: providers, and what watches over the server.

use std::{
    future::{pending, poll_fn},
    io, pin,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use futures_util::StreamExt;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::{io::InspectReader, sync::CancellationToken};
use tonic::transport::server::Connected;
use tower::ServiceExt;

use super::{connection::Connection, listener::Listener};

/// How long a client is given to read its last answer, and to end a head that it has begun, when its connection is to close.
const LINGER: Duration = Duration::from_secs(1);

/// How long a connection may be idle. Longer than proxies keep one for their next request, or they would send it into one that
/// is just being closed.
const IDLE: Duration = Duration::from_secs(75);

/// What a request may have before its body. Far more is refused by hyper, without a word; who serves is to check the rest.
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
    // For the first line, and for what stands around each header.
    const FIRST_LINE_BYTES: usize = 8 << 10;
    const AROUND_HEADER_BYTES: usize = 4;
    let max_headers = limits.max_headers.saturating_mul(2);
    let around = max_headers.saturating_mul(AROUND_HEADER_BYTES) + FIRST_LINE_BYTES;
    let info = connection.connect_info();
    let closing = info.closing.clone();
    let progress = Progress::new();
    let of_reads = progress.clone();
    let connection = InspectReader::new(connection, move |read: &[u8]| of_reads.has_read(read));
    let of_requests = progress.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        Box::pin(of_requests.clone().answer(router.clone().oneshot(request)))
    });
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        // It begins with the end of the request before.
        .header_read_timeout(limits.timeout.max(IDLE))
        .max_headers(max_headers)
        .max_buf_size(limits.max_bytes.saturating_add(around))
        // Who has said all that it has to say may still want to hear the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(connection), service);
    let ended = tokio::select! {
        ended = poll_fn(|context| served.poll_without_shutdown(context)) => ended,
        () = progress.head_is_late(limits.timeout) => Ok(()),
        () = closing.cancelled() => {
            pin::Pin::new(&mut served).graceful_shutdown();
            tokio::select! {
                ended = poll_fn(|context| served.poll_without_shutdown(context)) => ended,
                () = progress.is_over() => Ok(()),
            }
        }
    };
    match ended {
        Ok(()) => {
            let connection = served.into_parts().io.into_inner().into_inner();
            let _told_or_not = time::timeout(LINGER, linger(connection)).await;
        }
        Err(error) => tracing::debug!(%error, "a connection has failed"),
    }
}

/// What a connection is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// A part of a head has been there since then.
    Head(Instant),
    /// A request is being answered.
    Request,
}

/// How far a connection has come. hyper keeps that to itself, and has one clock for the time between two requests and that
/// of a head; and a connection that is to close it leaves open for a head that never ends.
#[derive(Clone, Debug)]
struct Progress(Arc<watch::Sender<Phase>>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Idle)))
    }

    fn has_read(&self, read: &[u8]) {
        self.0.send_if_modified(|phase| {
            let begins = *phase == Phase::Idle && !read.is_empty();
            if begins {
                *phase = Phase::Head(Instant::now());
            }
            begins
        });
    }

    async fn answer<T>(self, answering: impl Future<Output = T>) -> T {
        self.0.send_replace(Phase::Request);
        let answer = answering.await;
        self.0.send_replace(Phase::Idle);
        answer
    }

    /// Returns when a head takes longer than this.
    async fn head_is_late(&self, timeout: Duration) {
        let mut phases = self.0.subscribe();
        loop {
            let phase = *phases.borrow_and_update();
            let late = async {
                match phase {
                    Phase::Head(since) => time::sleep_until(since + timeout).await,
                    Phase::Idle | Phase::Request => pending().await,
                }
            };
            tokio::select! {
                () = late => return,
                _changed = phases.changed() => {}
            }
        }
    }

    /// Returns when a connection that is to close has no request for which that would have to wait.
    async fn is_over(&self) {
        loop {
            time::sleep(LINGER).await;
            if *self.0.borrow() != Phase::Request {
                return;
            }
        }
    }
}

/// Ends a connection in order. A client may still be sending what nobody wants to read: closing over that would take the
/// answer from it.
async fn linger(mut connection: Connection) -> io::Result<()> {
    connection.shutdown().await?;
    tokio::io::copy(&mut connection, &mut tokio::io::sink()).await?;
    Ok(())
}
