//! Who is kept out by `allowed_ips`, and that somebody hears of it who may have configured that wrongly.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::request::Parts;
use tokio::time::Instant;

use super::{answer::Refusal, client_address};
use crate::{config::ServerConfig, source::Source, transport::listener::ConnectionInfo};

/// How often the operator is warned. Strangers must not fill the log.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps webhooks out that come from elsewhere than their source allows.
#[derive(Debug)]
pub(super) struct Fence {
    config: Arc<ServerConfig>,
    /// When the operator was warned last.
    warned: Mutex<Option<Instant>>,
}

impl Fence {
    pub(super) fn new(config: &Arc<ServerConfig>) -> Self {
        Self {
            config: Arc::clone(config),
            warned: Mutex::default(),
        }
    }

    /// Whether a source takes webhooks from where this one comes from.
    pub(super) fn check(&self, source: &Source, head: &Parts) -> Result<(), Refusal> {
        if source.allowed_ips.is_empty() {
            return Ok(());
        }
        let peer = head.extensions.get::<ConnectionInfo>();
        let peer = peer.map(|connection| connection.peer.ip());
        let client = peer.and_then(|peer| {
            client_address::find(
                peer,
                &head.headers,
                &self.config.webhook_trusted_proxies,
                self.config.webhook_forwarded_header,
            )
        });
        let allows = |client| source.allowed_ips.iter().any(|net| net.contains(&client));
        match client {
            Some(client) if allows(client) => Ok(()),
            Some(client) => {
                if is_internal(client) {
                    self.warn(source, peer);
                }
                Err(Refusal::AddressNotAllowed)
            }
            None => {
                self.warn(source, peer);
                Err(Refusal::AddressUnknown)
            }
        }
    }

    /// Tells the operator of what looks like a proxy that was not named, or does not say for whom it speaks.
    fn warn(&self, source: &Source, peer: Option<IpAddr>) {
        let now = Instant::now();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|then| now.duration_since(then) < WARNING_INTERVAL) {
            return;
        }
        *warned = Some(now);
        tracing::warn!(
            provider.name = source.provider.name(),
            source.account = source.account,
            network.peer.address = peer.map(tracing::field::display),
            "webhooks of a source with allowed_ips are refused, because nobody knows from which address they come: are \
             server.webhook_trusted_proxies and webhook_forwarded_header right? More of the same are told in a minute at \
             the earliest"
        );
    }
}

/// Whether an address is none of the internet: rather that of a proxy than that of a provider.
fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}
