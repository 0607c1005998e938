//! Health: what load balancers and orchestrators are told, over gRPC and HTTP alike.

use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{admin::Admin, grpc::Verdict};
use crate::{
    log::{self, AppendError},
    proto::{
        admin_service_server::AdminServiceServer, verdict_service_server::VerdictServiceServer,
    },
};

/// The server as a whole, and each service.
const SERVICES: [&str; 3] = [
    "",
    VerdictServiceServer::<Verdict>::NAME,
    AdminServiceServer::<Admin>::NAME,
];

/// Whether the server is to be sent calls and webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is.
    Ready,
    /// The log cannot write.
    LogUnwritable,
    /// It is about to stop.
    Draining,
}

/// Tells how the server is, to all who may ask: nobody is told something else than the others.
pub(super) struct Health {
    reporter: HealthReporter,
    state: watch::Sender<State>,
}

/// How the server is now.
pub(super) type Readiness = watch::Receiver<State>;

impl Health {
    /// A server that is ready.
    pub(super) async fn new(reporter: HealthReporter) -> Self {
        let health = Self {
            reporter,
            state: watch::Sender::new(State::Ready),
        };
        health.tell(State::Ready).await;
        health
    }

    /// How the server is, to be looked at at any time.
    pub(super) fn readiness(&self) -> Readiness {
        self.state.subscribe()
    }

    async fn tell(&self, state: State) {
        let status = match state {
            State::Ready => ServingStatus::Serving,
            State::LogUnwritable | State::Draining => ServingStatus::NotServing,
        };
        self.state.send_replace(state);
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Tells that the server is about to stop. Calls are still served.
    pub(super) async fn drain(&self) {
        self.tell(State::Draining).await;
    }

    /// Ends the watches, which would hold up the shutdown. Who watches is still given the last status, and then the end.
    pub(super) async fn end(mut self) {
        for service in SERVICES {
            self.reporter.clear_service_status(service).await;
        }
    }

    /// Tells how the log is, whenever that changes. Returns when the log has failed for good, with why.
    pub(super) async fn follow(&self, mut log: watch::Receiver<log::Health>) -> String {
        loop {
            let now = log.borrow_and_update().clone();
            match now {
                log::Health::Well => self.tell(State::Ready).await,
                log::Health::Unwritable(_) => self.tell(State::LogUnwritable).await,
                log::Health::Failed(why) => return why,
            }
            if log.changed().await.is_err() {
                return AppendError::Closed.to_string();
            }
        }
    }
}

/// Returns when the log has failed for good, with why.
pub(super) async fn log_failure(mut log: watch::Receiver<log::Health>) -> String {
    let failed = log.wait_for(|health| matches!(health, log::Health::Failed(_)));
    match failed.await.as_deref() {
        Ok(log::Health::Failed(why)) => why.clone(),
        _ => AppendError::Closed.to_string(),
    }
}
