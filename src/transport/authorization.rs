//! Authorization: who calls, and whether they may call this rpc at all, decided in one place before anything is read.
//!
//! Each rpc states its scope in its `.proto` file. What a handler does for a caller is bounded by how far that
//! scope of the caller reaches. Health is open; so is reflection, if the configuration says so. Everything else, paths that
//! do not exist among it, is for known callers only.

use std::{
    collections::HashMap,
    convert::Infallible,
    mem,
    pin::{Pin, pin},
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::{
    sync::Semaphore,
    time::{self, Instant},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    admission::Shares,
    auditing::{Auditor, Entry},
    listener::ConnectionInfo,
    observation::Observed,
    status,
};
use crate::{
    allowance::Allowance,
    caller::{Callers, Identity, Refused},
    config::Reflection,
    error::Code,
    proto::{DESCRIPTORS, Scope},
    telemetry::metrics::Metrics,
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

/// How many calls of unknown callers are answered at once, and how many more with each second. Those beyond it wait.
const FAILURES_AT_ONCE: u32 = 100;
const FAILURES_PER_SECOND: u32 = 10;

/// How long they wait, and how many of them at most.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAYED: usize = 1024;

/// What it takes to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Nothing.
    Open,
    /// To be a caller.
    Known,
    /// To have a scope.
    Scope(Scope),
}

/// Decides who may call what.
pub(super) struct Gate {
    callers: Arc<Callers>,
    reflection: Reflection,
    auditor: Arc<Auditor>,
    shares: Arc<Shares>,
    metrics: Arc<Metrics>,
    timeout: Duration,
    failures: Allowance,
    delayed: Semaphore,
}

impl Gate {
    pub(super) fn new(
        callers: Arc<Callers>,
        reflection: Reflection,
        auditor: Auditor,
        shares: Arc<Shares>,
        metrics: Arc<Metrics>,
        timeout: Duration,
    ) -> Self {
        Self {
            callers,
            reflection,
            auditor: Arc::new(auditor),
            shares,
            metrics,
            timeout,
            failures: Allowance::new(FAILURES_AT_ONCE, FAILURES_PER_SECOND),
            delayed: Semaphore::new(MAX_DELAYED),
        }
    }

    fn rule(&self, path: &str) -> Rule {
        if let Some(scope) = SCOPES.get(path) {
            return Rule::Scope(*scope);
        }
        let of = |service: &str| path.starts_with(service);
        let is_reflection = of("/grpc.reflection.v1.ServerReflection/")
            || of("/grpc.reflection.v1alpha.ServerReflection/");
        match is_reflection && self.reflection == Reflection::Open {
            true => Rule::Open,
            false if of("/grpc.health.v1.Health/") => Rule::Open,
            false => Rule::Known,
        }
    }

    /// What an unknown caller is told, whatever was wrong. Whoever fails again and again is told late, so that guessing is
    /// slow; it keeps nobody waiting who is known.
    async fn unauthenticated(&self) -> Status {
        if !self.failures.take(Instant::now()) {
            let Ok(_delayed) = self.delayed.try_acquire() else {
                let message = "too many calls without valid credentials; try again";
                return status::error(Code::Overloaded, message);
            };
            time::sleep(FAILURE_DELAY).await;
        }
        status::error(
            Code::Unauthenticated,
            "the credentials are missing or not valid",
        )
    }

    /// Answers a call, or has it answered, and has operators see it.
    async fn serve<S>(&self, mut request: Request<Body>, mut service: S) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let scope = match self.rule(request.uri().path()) {
            Rule::Open => {
                let observed = Observed::unspanned(&request, &self.metrics);
                if let Some(connection) = request.extensions().get::<ConnectionInfo>() {
                    connection.seat.has_called();
                }
                let answered = self.in_time(service.call(request), || false).await;
                return observed.answered(answered);
            }
            Rule::Known => None,
            Rule::Scope(scope) => Some(scope),
        };
        let mut observed = Observed::begin(&request, &self.metrics);
        let names = certificate_names(&request);
        let identity = self.callers.authenticate(request.headers(), names).await;
        observed.authenticated(&mut request, identity.is_ok());
        let answered = self.serve_as(identity, scope, request, service);
        let response = answered.instrument(observed.span()).await;
        observed.answered(response)
    }

    /// The same, once it is known who calls or that nobody knows them.
    async fn serve_as<S>(
        &self,
        identity: Result<Identity, Refused>,
        scope: Option<Scope>,
        mut request: Request<Body>,
        mut service: S,
    ) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let connection = request.extensions().get::<ConnectionInfo>().cloned();
        let entry = self
            .auditor
            .begin(&mut request, identity.as_ref().ok(), scope);
        let response = match self
            .permit(identity, connection.as_ref(), scope, &entry)
            .await
        {
            Ok(known) => {
                if let Some(name) = known.caller.name() {
                    Span::current().set_attribute("caller.name", name.to_owned());
                }
                request.extensions_mut().insert(known.caller);
                request.extensions_mut().insert(known.validity);
                let answered = service.call(request);
                self.in_time(answered, || entry.goes_on()).await
            }
            Err(refused) => refused.into_http(),
        };
        entry.answered(response).await
    }

    /// Lets a caller make a call, which is recorded first if it must be.
    async fn permit(
        &self,
        identity: Result<Identity, Refused>,
        connection: Option<&ConnectionInfo>,
        scope: Option<Scope>,
        entry: &Entry,
    ) -> Result<Identity, Status> {
        let Ok(known) = identity else {
            return Err(self.unauthenticated().await);
        };
        self.shares.of(&known.caller).take_call(connection)?;
        if let Some(scope) = scope
            && !known.caller.has(scope)
        {
            return Err(status::scope_missing(scope));
        }
        entry.before().await?;
        Ok(known)
    }

    /// Waits for an answer as long as a call may take, or to the end of a call that goes on anyway: whoever sends half a
    /// request must not keep a permit for ever.
    async fn in_time(
        &self,
        answered: impl Future<Output = Result<Response<Body>, Infallible>>,
        goes_on: impl Fn() -> bool,
    ) -> Response<Body> {
        let mut answered = pin!(answered);
        let in_time = time::timeout(self.timeout, &mut answered).await;
        let answered = match in_time {
            Ok(answered) => answered,
            Err(_) if goes_on() => answered.await,
            Err(_) => {
                let message =
                    "the call takes longer than server.call_timeout_seconds, and was given up";
                return Status::deadline_exceeded(message).into_http();
            }
        };
        let Ok(response) = answered;
        response
    }
}

/// The names of the certificate that the client of a call has shown.
fn certificate_names<B>(request: &Request<B>) -> &[String] {
    let connection = request.extensions().get::<ConnectionInfo>();
    let certificate = connection.and_then(|connection| connection.certificate.as_deref());
    certificate.map_or(&[], |certificate| &certificate.names)
}

/// Where the connection of a call comes from.
pub(super) fn peer<B>(request: &Request<B>) -> Option<std::net::IpAddr> {
    let connection = request.extensions().get::<ConnectionInfo>()?;
    Some(connection.peer.ip())
}

/// Lets calls pass of callers who may make them.
#[derive(Clone)]
pub(super) struct Authorization(pub(super) Arc<Gate>);

impl<S> Layer<S> for Authorization {
    type Service = Authorized<S>;

    fn layer(&self, service: S) -> Self::Service {
        Authorized {
            service,
            gate: Arc::clone(&self.0),
        }
    }
}

/// Services whose callers are known.
#[derive(Clone)]
pub(super) struct Authorized<S> {
    service: S,
    gate: Arc<Gate>,
}

impl<S> Service<Request<Body>> for Authorized<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready, and a clone for the next call.
        let next = self.service.clone();
        let service = mem::replace(&mut self.service, next);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move { Ok(gate.serve(request, service).await) })
    }
}
