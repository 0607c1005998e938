//! Services that are open to whoever can connect, or of use before anything else is known: health and reflection.
//!
//! What they take is bounded apart from the calls of callers, so that neither keeps the other waiting. Of calls that are
//! answered at once, the oldest goes when there are too many: an honest one takes milliseconds, so nobody can fill the room
//! with requests that never end, and have us taken for ill. A stream that stays open keeps its place, and one more is
//! refused. Both end when their connection is to be left.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{
    answer::{Held, Watchman},
    listener::ConnectionInfo,
    status,
};
use crate::error::Code;

/// How many calls there may be that are answered at once, and how many streams that stay open.
const MAX_CALLS: usize = 256;
const MAX_STREAMS: usize = 256;

/// The largest requests: the name of a service, and the name of a file or of something in it.
pub(super) const MAX_HEALTH_REQUEST_BYTES: usize = 4 << 10;
pub(super) const MAX_REFLECTION_REQUEST_BYTES: usize = 64 << 10;

/// How long an answer may lie.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The places for calls and streams.
pub(super) struct Places {
    calls: Mutex<Calls>,
    streams: Arc<Semaphore>,
    draining: CancellationToken,
    watchman: Arc<Watchman>,
}

/// The calls that are being answered.
#[derive(Default)]
struct Calls {
    next: u64,
    /// What ends each, in the order in which they came.
    ends: BTreeMap<u64, CancellationToken>,
}

impl Places {
    /// Places that are left when `draining` is cancelled.
    pub(super) fn new(draining: CancellationToken, watchman: Arc<Watchman>) -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            draining,
            watchman,
        })
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a call, that of the oldest if need be.
    fn take_for_call(self: &Arc<Self>, end: CancellationToken) -> CallPlace {
        let mut calls = self.calls();
        if calls.ends.len() >= MAX_CALLS
            && let Some((_, oldest)) = calls.ends.pop_first()
        {
            oldest.cancel();
        }
        let number = calls.next;
        calls.next += 1;
        calls.ends.insert(number, end);
        CallPlace {
            number,
            places: Arc::clone(self),
        }
    }

    /// What a call holds until its answer is taken.
    fn take(self: &Arc<Self>, path: &str, end: CancellationToken) -> Result<Held, Status> {
        if path.ends_with("/Check") {
            return Ok(Box::new((
                self.take_for_call(end.clone()),
                end.drop_guard(),
            )));
        }
        let place = Arc::clone(&self.streams).try_acquire_owned();
        let place = place.map_err(|_| {
            let message = format!("{MAX_STREAMS} such streams are open already; try again");
            status::error(Code::Overloaded, message)
        })?;
        Ok(Box::new((place, end.drop_guard())))
    }
}

/// The place of a call.
struct CallPlace {
    number: u64,
    places: Arc<Places>,
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        self.places.calls().ends.remove(&self.number);
    }
}

/// A service that is bounded by these places.
#[derive(Clone)]
pub(super) struct Open<S> {
    service: S,
    places: Arc<Places>,
}

impl<S> Open<S> {
    pub(super) fn new(service: S, places: &Arc<Places>) -> Self {
        let places = Arc::clone(places);
        Self { service, places }
    }
}

impl<S> Service<Request<Body>> for Open<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connection = request.extensions().get::<ConnectionInfo>();
        let closing = connection.map_or(&self.places.draining, |connection| &connection.closing);
        let end = closing.child_token();
        let place = match self.places.take(request.uri().path(), end.clone()) {
            Ok(place) => place,
            Err(refused) => return Box::pin(future::ready(Ok(refused.into_http()))),
        };
        let request = request.map(|body| Body::new(UntilEnd::new(body, end.clone())));
        let answered = self.service.call(request);
        let watchman = Arc::clone(&self.places.watchman);
        Box::pin(async move {
            let Ok(response) = answered.await;
            Ok(response.map(|body| watchman.guard_until(end, body, Some(place), TIMEOUT)))
        })
    }
}

impl<S: NamedService> NamedService for Open<S> {
    const NAME: &'static str = S::NAME;
}

/// The body of a request that ends when its call is to end, whatever the client still has to say. Without that, who waits
/// for its rest would keep the connection open.
struct UntilEnd {
    body: Body,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl UntilEnd {
    fn new(body: Body, end: CancellationToken) -> Self {
        Self {
            body,
            end: Box::pin(end.cancelled_owned()),
        }
    }
}

impl HttpBody for UntilEnd {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.end.as_mut().poll(context).is_ready() {
            let message = "the request did not come to its end in time; try again";
            return Poll::Ready(Some(Err(status::error(Code::Overloaded, message))));
        }
        Pin::new(&mut this.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
