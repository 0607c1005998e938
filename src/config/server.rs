//! The server's part of the configuration: where it listens, and what it allows.

use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use super::{
    network,
    tls::{ClientCertificates, TlsConfig},
};

/// The listeners and their limits. See `config.default.toml` for what each is for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "documented where users read it, in config.default.toml"
)]
pub struct ServerConfig {
    pub grpc_listen: SocketAddr,
    pub insecure: bool,
    pub tls: Option<TlsConfig>,
    #[serde(deserialize_with = "address_or_none")]
    pub webhook_listen: Option<SocketAddr>,
    pub webhook_insecure: bool,
    pub webhook_tls: Option<TlsConfig>,
    pub webhook_max_connections: usize,
    pub webhook_read_timeout_seconds: u64,
    #[serde(deserialize_with = "networks")]
    pub webhook_trusted_proxies: Vec<IpNet>,
    pub webhook_forwarded_header: ForwardedHeader,
    #[serde(deserialize_with = "address_or_none")]
    pub ops_listen: Option<SocketAddr>,
    pub ops_insecure: bool,
    pub ops_tls: Option<TlsConfig>,
    pub max_connections: usize,
    pub handshake_timeout_seconds: u64,
    pub write_timeout_seconds: u64,
    pub max_connection_age_seconds: u64,
    pub max_connection_age_grace_seconds: u64,
    pub reload_interval_seconds: u64,
    pub max_payload_bytes: usize,
    pub max_headers: usize,
    pub max_header_bytes: usize,
    pub max_concurrent_calls: usize,
    pub max_subscriptions: usize,
    pub max_ingest_streams: usize,
    pub call_timeout_seconds: u64,
    pub max_concurrent_streams_per_connection: u32,
    pub keepalive_interval_seconds: u64,
    pub keepalive_timeout_seconds: u64,
    pub drain_delay_seconds: u64,
    pub shutdown_grace_seconds: u64,
    pub stalled_answer_timeout_seconds: u64,
    pub max_metadata_bytes: u32,
    pub max_json_depth: usize,
    pub reflection: Reflection,
    pub max_calls_per_second_per_caller: u32,
    pub max_concurrent_calls_per_caller: usize,
    pub max_subscriptions_per_caller: usize,
}

/// Who may ask the server for its services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflection {
    /// Nobody.
    Off,
    /// Any caller of the configuration.
    Authenticated,
    /// Whoever can connect.
    Open,
}
/// The header in which trusted proxies say for whom they speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, a list of addresses.
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    Forwarded,
}

/// What is wrong with the server's part of the configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A listener would be open to others, who could read what travels, or read and write what they like.
    #[error(
        "server.{listen} = \"{address}\" is not loopback, and {missing}; configure {remedy}, \
         or set server.{insecure} = true to listen there all the same"
    )]
    Exposed {
        /// The key of the listener.
        listen: &'static str,
        /// Where it would listen.
        address: SocketAddr,
        /// What is not there.
        missing: &'static str,
        /// What would put it there.
        remedy: &'static str,
        /// The key that allows it all the same.
        insecure: &'static str,
    },
    /// A limit that would stop everything.
    #[error("server.{0} must be at least 1")]
    Zero(&'static str),
    /// A limit that the server could not keep.
    #[error("server.{0} must be at most {MAX_AT_ONCE}")]
    TooMany(&'static str),
    /// More headers than could be decoded in bounded memory.
    #[error("server.max_headers must be at most {MAX_HEADERS}")]
    TooManyHeaders,
    /// A depth that JSON cannot be read to.
    #[error("server.max_json_depth must be at most {MAX_JSON_DEPTH}")]
    JsonDepth,
    /// More than makes sense, and than all places that have to do with it could bear.
    #[error("server.{0} must be at most {1}")]
    TooMuch(&'static str, u64),
    /// Two listeners at one place.
    #[error("server.{0} and server.{1} are the same address")]
    SameAddress(&'static str, &'static str),
}

impl ServerConfig {
    /// Beyond loopback, connections must be encrypted and those who connect known, unless the operator insists.
    pub(super) fn check_exposure(&self, has_callers: bool) -> Result<(), ServerError> {
        let grpc = match (self.tls.is_some(), has_callers) {
            (true, true) => None,
            (true, false) => Some(("anyone could call", "[[callers]]")),
            (false, true) => Some(("there is no TLS", "[server.tls]")),
            (false, false) => Some((
                "there is no TLS, and anyone could call",
                "[server.tls] and [[callers]]",
            )),
        };
        // Webhooks prove themselves.
        let webhook = match &self.webhook_tls {
            Some(_) => None,
            None => Some(("there is no TLS", "[server.webhook_tls]")),
        };
        let ops = match self.ops_tls.as_ref().map(|tls| &tls.client_certificates) {
            Some(ClientCertificates::Required { .. }) => None,
            _ => Some((
                "anyone could read the metrics",
                "[server.ops_tls] with client_certificates = \"required\"",
            )),
        };
        let listeners = [
            (
                "grpc_listen",
                Some(self.grpc_listen),
                grpc,
                "insecure",
                self.insecure,
            ),
            (
                "webhook_listen",
                self.webhook_listen,
                webhook,
                "webhook_insecure",
                self.webhook_insecure,
            ),
            (
                "ops_listen",
                self.ops_listen,
                ops,
                "ops_insecure",
                self.ops_insecure,
            ),
        ];
        for (listen, address, weakness, insecure, is_meant) in listeners {
            if let (Some(address), Some((missing, remedy))) = (address, weakness)
                && !address.ip().is_loopback()
                && !is_meant
            {
                return Err(ServerError::Exposed {
                    listen,
                    address,
                    missing,
                    remedy,
                    insecure,
                });
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), ServerError> {
        let limits = [
            ("max_payload_bytes", self.max_payload_bytes as u64),
            ("max_headers", self.max_headers as u64),
            ("max_header_bytes", self.max_header_bytes as u64),
            ("max_concurrent_calls", self.max_concurrent_calls as u64),
            ("max_subscriptions", self.max_subscriptions as u64),
            ("max_ingest_streams", self.max_ingest_streams as u64),
            ("call_timeout_seconds", self.call_timeout_seconds),
            (
                "max_concurrent_streams_per_connection",
                self.max_concurrent_streams_per_connection.into(),
            ),
            (
                "keepalive_interval_seconds",
                self.keepalive_interval_seconds,
            ),
            ("keepalive_timeout_seconds", self.keepalive_timeout_seconds),
            ("max_connections", self.max_connections as u64),
            ("handshake_timeout_seconds", self.handshake_timeout_seconds),
            ("write_timeout_seconds", self.write_timeout_seconds),
            (
                "max_connection_age_seconds",
                self.max_connection_age_seconds,
            ),
            ("reload_interval_seconds", self.reload_interval_seconds),
            (
                "stalled_answer_timeout_seconds",
                self.stalled_answer_timeout_seconds,
            ),
            ("max_metadata_bytes", self.max_metadata_bytes.into()),
            ("max_json_depth", self.max_json_depth as u64),
            (
                "webhook_max_connections",
                self.webhook_max_connections as u64,
            ),
            (
                "webhook_read_timeout_seconds",
                self.webhook_read_timeout_seconds,
            ),
        ];
        if let Some((name, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
            return Err(ServerError::Zero(name));
        }
        if self.max_headers > MAX_HEADERS {
            return Err(ServerError::TooManyHeaders);
        }
        if self.max_json_depth > MAX_JSON_DEPTH {
            return Err(ServerError::JsonDepth);
        }
        let at_once = [
            ("max_concurrent_calls", self.max_concurrent_calls),
            ("max_subscriptions", self.max_subscriptions),
            ("max_ingest_streams", self.max_ingest_streams),
            ("max_connections", self.max_connections),
            ("webhook_max_connections", self.webhook_max_connections),
        ];
        if let Some((name, _)) = at_once.iter().find(|(_, limit)| *limit > MAX_AT_ONCE) {
            return Err(ServerError::TooMany(name));
        }
        let most = [
            ("max_payload_bytes", self.max_payload_bytes as u64, 32 << 20),
            ("max_header_bytes", self.max_header_bytes as u64, 1 << 20),
            (
                "webhook_read_timeout_seconds",
                self.webhook_read_timeout_seconds,
                3600,
            ),
            ("drain_delay_seconds", self.drain_delay_seconds, 3600),
            ("shutdown_grace_seconds", self.shutdown_grace_seconds, 3600),
        ];
        if let Some((name, _, most)) = most.iter().find(|(_, limit, most)| limit > most) {
            return Err(ServerError::TooMuch(name, *most));
        }
        self.check_addresses()
    }

    /// Each listener needs a place of its own; port 0 is another one each time.
    fn check_addresses(&self) -> Result<(), ServerError> {
        let listeners = [
            ("grpc_listen", Some(self.grpc_listen)),
            ("webhook_listen", self.webhook_listen),
            ("ops_listen", self.ops_listen),
        ];
        for (index, (name, address)) in listeners.iter().enumerate() {
            let address = address.filter(|address| address.port() != 0);
            let before = listeners[..index].iter();
            let mut same = before.filter(|(_, other)| address.is_some() && *other == address);
            if let Some((other, _)) = same.next() {
                return Err(ServerError::SameAddress(other, name));
            }
        }
        Ok(())
    }
}

/// The most headers of a webhook that a server can be told to take. Requests with more are refused before they are decoded.
pub(crate) const MAX_HEADERS: usize = 10_000;

/// How deep JSON can be read at all.
const MAX_JSON_DEPTH: usize = 127;

/// The most calls, subscriptions or connections that a server can be told to serve at once.
const MAX_AT_ONCE: usize = 1 << 20;

/// An address, or nothing for an empty text.
fn address_or_none<'de, D: Deserializer<'de>>(written: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(written)?;
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().map(Some).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is not an address and a port, like 127.0.0.1:8080, nor empty"
            ))
        }),
    }
}

fn networks<'de, D: Deserializer<'de>>(written: D) -> Result<Vec<IpNet>, D::Error> {
    let written = Vec::<String>::deserialize(written)?;
    let network = |text: &String| {
        let network = network::parse(text);
        network.ok_or_else(|| de::Error::custom(format!("{text:?} is {}", network::EXPECTED)))
    };
    written.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Variables, parse};

    #[test]
    fn beyond_loopback_both_tls_and_callers_are_needed_unless_the_operator_insists() {
        let tls = "[server.tls]\ncert_file = \"c\"\nkey_file = \"k\"";
        let missing = |address: &str, more: &str, has_callers| {
            let text = format!("[server]\ngrpc_listen = \"{address}\"\n{more}");
            let config = parse(&text, &Variables::new()).expect("a configuration");
            let checked = config.server.check_exposure(has_callers);
            checked.err().map(|error| error.to_string())
        };
        for beyond in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:127.0.0.1]:1"] {
            for (more, has_callers, expected) in [
                ("", false, "configure [server.tls] and [[callers]], or"),
                ("", true, "there is no TLS; configure [server.tls], or"),
                (tls, false, "anyone could call; configure [[callers]], or"),
            ] {
                let said = missing(beyond, more, has_callers).expect("a refusal");
                assert!(said.contains(expected), "{said}");
                assert!(said.contains("server.insecure = true"), "{said}");
                assert_eq!(missing("127.0.0.1:1", more, has_callers), None);
                assert_eq!(missing("[::1]:1", more, has_callers), None);
            }
            assert_eq!(missing(beyond, tls, true), None);
            assert_eq!(missing(beyond, "insecure = true", false), None);
        }
    }

    #[test]
    fn beyond_loopback_webhooks_need_tls_and_metrics_need_certificates_of_clients() {
        let tls = |section: &str, more: &str| {
            format!("[server.{section}]\ncert_file = \"c\"\nkey_file = \"k\"\n{more}")
        };
        let mutual = "client_certificates = \"required\"\nclient_ca_file = \"a\"";
        let refused = |text: &str| {
            let config = parse(&format!("[server]\n{text}"), &Variables::new());
            let checked = config.expect("a configuration").server.check_exposure(true);
            checked.err().map(|error| error.to_string())
        };
        let webhook = "webhook_listen = \"0.0.0.0:1\"\n";
        let said = refused(webhook).expect("a refusal");
        for expected in [
            "webhook_listen",
            "[server.webhook_tls]",
            "webhook_insecure = true",
        ] {
            assert!(said.contains(expected), "{said}");
        }
        assert!(refused(&format!("insecure = true\nops_insecure = true\n{webhook}")).is_some());
        assert_eq!(
            refused(&format!("webhook_insecure = true\n{webhook}")),
            None
        );
        assert_eq!(
            refused(&format!("{webhook}{}", tls("webhook_tls", ""))),
            None
        );

        let ops = "ops_listen = \"[::]:1\"\n";
        for more in [
            String::new(),
            tls("ops_tls", ""),
            tls("webhook_tls", mutual),
        ] {
            let said = refused(&format!("{ops}{more}")).expect("a refusal");
            for expected in ["ops_listen", "[server.ops_tls]", "ops_insecure = true"] {
                assert!(said.contains(expected), "{said}");
            }
        }
        assert_eq!(refused(&format!("ops_insecure = true\n{ops}")), None);
        assert_eq!(refused(&format!("{ops}{}", tls("ops_tls", mutual))), None);

        for nowhere in ["webhook_listen = \"\"", "ops_listen = \"\"", ""] {
            assert_eq!(refused(nowhere), None);
        }
    }
}
