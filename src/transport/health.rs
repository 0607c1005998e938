//! Health: what load balancers and orchestrators are told.

use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{admin::Admin, grpc::Verdict};
use crate::{
    log::{AppendError, Health},
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

/// Tells the health of every service.
pub(super) async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Tells that no service is to be called any more, and ends the watches on them. A watch that never ended would hold up the
/// shutdown.
pub(super) async fn end(mut reporter: HealthReporter) {
    report(&reporter, ServingStatus::NotServing).await;
    for service in SERVICES {
        // Who watches is still given the last status, and then the end.
        reporter.clear_service_status(service).await;
    }
}

/// Tells how the log is, whenever that changes. Returns when the log has failed for good, with why.
pub(super) async fn follow(
    reporter: &HealthReporter,
    mut health: watch::Receiver<Health>,
) -> String {
    loop {
        let now = health.borrow_and_update().clone();
        match now {
            Health::Well => report(reporter, ServingStatus::Serving).await,
            Health::Unwritable(_) => report(reporter, ServingStatus::NotServing).await,
            Health::Failed(why) => return why,
        }
        if health.changed().await.is_err() {
            return AppendError::Closed.to_string();
        }
    }
}
