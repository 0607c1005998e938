//! The connection to a server.

use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use super::CliError;

/// Which server to talk to.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct EndpointArg {
    /// The server.
    #[arg(
        long,
        env = "VERDICT_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051"
    )]
    pub(super) endpoint: Endpoint,
}

impl EndpointArg {
    pub(super) async fn connect(&self) -> Result<Channel, CliError> {
        self.endpoint.connect().await.map_err(|_| {
            let uri = self.endpoint.uri();
            CliError::Failed(format!(
                "cannot connect to {uri}; is `verdict serve` running there?"
            ))
        })
    }
}

/// The reason of a server's error, if it gives one.
pub(super) fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// A server's error in one line: the reason, if it gives one, and the message.
pub(super) fn failure(status: &Status) -> CliError {
    let reason = reason(status).unwrap_or_else(|| format!("{:?}", status.code()));
    CliError::Failed(format!("{reason}: {}", status.message()))
}
