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

/// What tells whether the server is to be sent calls and webhooks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct State {
    /// Whether the log can write.
    pub(super) log_writable: bool,
    /// Whether the server is about to stop.
    pub(super) draining: bool,
}

impl State {
    pub(super) fn is_ready(self) -> bool {
        self.log_writable && !self.draining
    }
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
            state: watch::Sender::new(State {
                log_writable: true,
                draining: false,
            }),
        };
        health.report(ServingStatus::Serving).await;
        health
    }

    /// How the server is, to be looked at at any time.
    pub(super) fn readiness(&self) -> Readiness {
        self.state.subscribe()
    }

    async fn tell(&self, change: impl FnOnce(&mut State)) {
        let has_changed = self.state.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
        let is_ready = self.state.borrow().is_ready();
        match (has_changed, is_ready) {
            (false, _) => {}
            (true, true) => self.report(ServingStatus::Serving).await,
            (true, false) => self.report(ServingStatus::NotServing).await,
        }
    }

    async fn report(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Tells that the server is about to stop. Calls are still served.
    pub(super) async fn drain(&self) {
        self.tell(|state| state.draining = true).await;
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
            let log_writable = match now {
                log::Health::Well => true,
                log::Health::Unwritable(_) => false,
                log::Health::Failed(why) => return why,
            };
            self.tell(|state| state.log_writable = log_writable).await;
            if log.changed().await.is_err() {
                return AppendError::Closed.to_string();
            }
        }
    }
}
