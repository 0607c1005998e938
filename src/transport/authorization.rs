//! Authorization: who calls, and whether they may call this rpc at all, decided in one place before anything is read.
//!
//! Each rpc states its scope in its `.proto` file. What a handler does for a caller is bounded by how far that
//! scope of the caller reaches.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
};

use futures_util::future;
use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::status;
use crate::{
    caller::Caller,
    proto::{DESCRIPTORS, Scope},
};

/// The scope of each rpc of `verdict.v1`, by its path.
static SCOPES: LazyLock<HashMap<String, Scope>> = LazyLock::new(|| {
    let option = DESCRIPTORS
        .get_extension_by_name("verdict.v1.required_scope")
        .expect("scope.proto declares it");
    let methods = DESCRIPTORS.services().flat_map(|service| {
        let methods: Vec<_> = service.methods().collect();
        methods
    });
    methods
        .map(|method| {
            let scope = method.options().get_extension(&option).as_enum_number();
            let scope = scope.and_then(|number| Scope::try_from(number).ok());
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            (path, scope.unwrap_or(Scope::Unspecified))
        })
        .collect()
});

/// Lets calls pass of callers who may make them.
#[derive(Clone)]
pub(super) struct Authorization;

impl<S> Layer<S> for Authorization {
    type Service = Authorized<S>;

    fn layer(&self, service: S) -> Self::Service {
        Authorized { service }
    }
}

/// Services whose callers are known.
#[derive(Clone)]
pub(super) struct Authorized<S> {
    service: S,
}

impl<S> Authorized<S> {
    fn authorize(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let caller = Caller::anyone();
        match SCOPES.get(request.uri().path()) {
            Some(scope) if !caller.has(*scope) => Err(status::scope_missing(*scope)),
            _ => Ok(caller),
        }
    }
}

impl<S> Service<Request<Body>> for Authorized<S>
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
        match self.authorize(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.service.call(request))
            }
            Err(refused) => Box::pin(future::ready(Ok(refused.into_http()))),
        }
    }
}
