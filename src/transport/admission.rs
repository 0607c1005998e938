//! Admission: whether a call is served at all, decided before its request is read, so that what waits costs no memory.
//!
//! What the server does at once is bounded, and so is what it does for one caller: none can use up what is there for all.
//! What a call holds it gives back when its answer is taken, not when it is made.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future;
use http::{Request, Response};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{Shared, answer::Held, listener::ConnectionInfo, status, webhook};
use crate::{
    allowance::Allowance,
    caller::{Caller, Callers},
    config::ServerConfig,
    error::Code,
};

/// What an admitted call holds: one of the calls that may be served at once, of all and of its caller. It is given back
/// when the last clone is dropped.
///
/// [`Admitted`] holds it until the answer is taken. What goes on without the caller finds a clone in the extensions of the
/// request.
pub(super) type Permit = Arc<Places>;

/// A place among those of all callers, and one among those of this caller.
pub(super) struct Places {
    _of_all: OwnedSemaphorePermit,
    _of_caller: OwnedSemaphorePermit,
}

/// In the extensions of an answer: it is a stream that may stay open for ever, and holds something else instead of its
/// permit.
#[derive(Clone, Copy)]
pub(super) struct StaysOpen;

/// A number of places of which each caller may have a share.
pub(super) struct Room {
    /// What they are for, in messages.
    what: &'static str,
    most: usize,
    places: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(what: &'static str, most: usize) -> Self {
        Self {
            what,
            most,
            places: Arc::new(Semaphore::new(most)),
        }
    }

    /// How many places there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// How many of them are taken.
    pub(super) fn taken(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }

    pub(super) fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }

    /// A share of it: this much, or by default a quarter.
    fn share(&self, most: usize) -> Self {
        let most = match most {
            0 => self.most.div_ceil(4),
            most => most.min(self.most),
        };
        Self::new(self.what, most)
    }

    /// A place in this share of a caller, without one in the room of all.
    pub(super) fn take_of_caller(&self) -> Result<OwnedSemaphorePermit, Status> {
        let taken = Arc::clone(&self.places).try_acquire_owned();
        taken.map_err(|_| {
            let (what, most) = (self.what, self.most);
            let message = format!("{most} {what} of this caller already; try again");
            status::error(Code::Overloaded, message)
        })
    }

    /// A place in this room and in a share of it.
    pub(super) fn enter(&self, share: &Self) -> Result<Permit, Status> {
        let overloaded = |message| status::error(Code::Overloaded, message);
        let (what, most) = (self.what, self.most);
        let of_caller = share.take_of_caller()?;
        let of_all = Arc::clone(&self.places).try_acquire_owned();
        let of_all = of_all.map_err(|_| overloaded(format!("{most} {what} already; try again")))?;
        Ok(Permit::new(Places {
            _of_all: of_all,
            _of_caller: of_caller,
        }))
    }
}

/// What is there for all callers.
pub(super) struct Rooms {
    pub(super) connections: Room,
    pub(super) webhook_connections: Room,
    /// What the webhooks at the edge take: its places are bytes.
    pub(super) webhook_memory: Room,
    calls: Room,
    pub(super) subscriptions: Room,
    pub(super) ingest_streams: Room,
}

impl Rooms {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self {
            connections: Room::new("connections are open", config.max_connections),
            webhook_connections: Room::new("connections are open", config.webhook_max_connections),
            webhook_memory: Room::new(
                "bytes of webhooks are being received",
                webhook::memory_bytes(config.max_payload_bytes),
            ),
            calls: Room::new("calls are being served", config.max_concurrent_calls),
            subscriptions: Room::new("subscriptions are open", config.max_subscriptions),
            ingest_streams: Room::new("ingest streams are open", config.max_ingest_streams),
        }
    }

    /// Those whose places are not bytes, by what they are places for.
    pub(super) fn all(&self) -> [(&'static str, &Room); 5] {
        [
            ("connections", &self.connections),
            ("webhook_connections", &self.webhook_connections),
            ("calls", &self.calls),
            ("subscriptions", &self.subscriptions),
            ("ingest_streams", &self.ingest_streams),
        ]
    }
}

/// What is there for one caller.
pub(super) struct Share {
    connections: Room,
    calls: Room,
    pub(super) subscriptions: Room,
    pub(super) ingest_streams: Room,
    /// How many calls it may make; `None` is as many as it likes.
    rate: Option<Allowance>,
}

impl Share {
    /// Counts a call, if it may be made now. The first one proves its connection.
    pub(super) fn take_call(&self, connection: Option<&ConnectionInfo>) -> Result<(), Status> {
        if let Some(connection) = connection {
            connection.seat.prove(&self.connections)?;
        }
        match &self.rate {
            Some(rate) if !rate.take(Instant::now()) => {
                let message = "the caller makes more calls than it may; try again";
                Err(status::error(Code::Overloaded, message))
            }
            _ => Ok(()),
        }
    }

    /// Waits until one more webhook of a stream may be taken.
    pub(super) async fn take_webhook(&self) {
        if let Some(rate) = &self.rate {
            rate.wait().await;
        }
    }
}

/// The shares of all callers.
pub(super) struct Shares {
    by_name: HashMap<String, Arc<Share>>,
    /// Of whoever calls when nobody is asked: everything.
    anyone: Arc<Share>,
    /// Of all callers that have a name and no share of their own. There are none, unless we are wrong.
    others: Arc<Share>,
}

impl Shares {
    pub(super) fn new(rooms: &Rooms, config: &ServerConfig, callers: &Callers) -> Self {
        let share = |connections, calls, subscriptions, ingest_streams, per_second| Share {
            connections: rooms.connections.share(connections),
            calls: rooms.calls.share(calls),
            subscriptions: rooms.subscriptions.share(subscriptions),
            ingest_streams: rooms.ingest_streams.share(ingest_streams),
            // A second's worth may come at once.
            rate: (per_second > 0).then(|| Allowance::new(per_second, per_second)),
        };
        let of_caller = || {
            Arc::new(share(
                0,
                config.max_concurrent_calls_per_caller,
                config.max_subscriptions_per_caller,
                0,
                config.max_calls_per_second_per_caller,
            ))
        };
        let names = callers.names();
        Self {
            by_name: names.map(|name| (name.to_owned(), of_caller())).collect(),
            others: of_caller(),
            anyone: Arc::new(share(usize::MAX, usize::MAX, usize::MAX, usize::MAX, 0)),
        }
    }

    /// The share of a caller.
    pub(super) fn of(&self, caller: &Caller) -> &Arc<Share> {
        match caller.name() {
            None => &self.anyone,
            Some(name) => self.by_name.get(name).unwrap_or(&self.others),
        }
    }
}

/// A service whose calls are admitted first. Health and reflection are bounded apart from it.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    // Cloned with each call.
    shared: Arc<Shared>,
}

impl<S> Admitted<S> {
    pub(super) fn new(service: S, shared: &Shared) -> Self {
        let shared = Arc::new(shared.clone());
        Self { service, shared }
    }
}

impl Shared {
    fn admit(&self, request: &Request<Body>) -> Result<Permit, Status> {
        if self.draining.is_cancelled() {
            return Err(status::draining());
        }
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(status::nobody)?;
        self.rooms.calls.enter(&self.shares.of(caller).calls)
    }
}

impl<S> Service<Request<Body>> for Admitted<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let permit = match self.shared.admit(&request) {
            Ok(permit) => permit,
            Err(refused) => return Box::pin(future::ready(Ok(refused.into_http()))),
        };
        request.extensions_mut().insert(Permit::clone(&permit));
        let answered = self.service.call(request);
        let timeout = self.shared.config.stalled_answer_timeout_seconds;
        // More than that no clock can wait for in all places.
        let timeout = Duration::from_secs(timeout.min(365 * 24 * 3600));
        let watchman = Arc::clone(&self.shared.watchman);
        Box::pin(async move {
            let Ok(mut response) = answered.await;
            let stays_open = response.extensions_mut().remove::<StaysOpen>().is_some();
            let held = (!stays_open).then(|| Box::new(permit) as Held);
            Ok(response.map(|body| watchman.guard(body, held, timeout)))
        })
    }
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Variables};

    #[test]
    fn only_who_has_no_name_has_everything() {
        let config = config::parse("", &Variables::new()).unwrap().server;
        let shares = Shares::new(&Rooms::new(&config), &config, &Callers::anyone());
        let calls = |caller: Caller| shares.of(&caller).calls.most;
        assert_eq!(calls(Caller::anyone()), config.max_concurrent_calls);
        let share = config.max_concurrent_calls / 4;
        assert_eq!(calls(Caller::new("unheard-of", [])), share);
    }
}
