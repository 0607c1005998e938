//! Admission: whether a call is served at all, decided before its request is read, so that what waits costs no memory.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future;
use http::{Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{Shared, status};
use crate::error::Code;

/// What an admitted call holds: one of the calls that may be served at once. It is given back when the last clone is
/// dropped.
///
/// [`Admitted`] holds it until the call is answered. What goes on after the answer, or without the caller, finds a clone
/// in the extensions of the request.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// A service whose calls are admitted first. Health and reflection do without.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    service: S,
    shared: Shared,
}

impl<S> Admitted<S> {
    pub(super) fn new(service: S, shared: &Shared) -> Self {
        let shared = shared.clone();
        Self { service, shared }
    }
}

impl Shared {
    fn admit(&self) -> Result<Permit, Status> {
        if self.draining.is_cancelled() {
            return Err(status::draining());
        }
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        permit.map(Permit::new).map_err(|_| {
            let limit = self.config.max_concurrent_calls;
            let message = format!("{limit} calls are being served already; try again");
            status::error(Code::Overloaded, message)
        })
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
        let permit = match self.shared.admit() {
            Ok(permit) => permit,
            Err(refused) => return Box::pin(future::ready(Ok(refused.into_http()))),
        };
        request.extensions_mut().insert(Permit::clone(&permit));
        let answered = self.service.call(request);
        Box::pin(async move {
            let answered = answered.await;
            drop(permit);
            answered
        })
    }
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}
