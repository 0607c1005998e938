//! What operators ask over HTTP: whether the server lives, whether it is ready, and its metrics.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use verdict::{
    config::ServerConfig,
    log::{EventLog, Health, Position},
    proto::{CommitCursorRequest, IngestRequest, verdict_service_client::VerdictServiceClient},
    telemetry::Telemetry,
    transport::{self, Access, Listeners, ServeError, Service},
};

use crate::{
    pki::{Authority, Clients, Pair, tls_config},
    support::{PATIENCE, connect, fixture_sources, memory_log, real_now, server_config},
    troubled_log::TroubledLog,
};

/// A server with all its listeners.
pub(crate) struct Operated {
    pub(crate) client: VerdictServiceClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) telemetry: Telemetry,
    pub(crate) ops: SocketAddr,
    pub(crate) webhook: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Operated {
    pub(crate) async fn start(log: Arc<dyn EventLog>) -> Self {
        Self::start_with(server_config(), log).await
    }

    async fn start_with(config: ServerConfig, log: Arc<dyn EventLog>) -> Self {
        let [grpc, webhook, ops] = [listen().await, listen().await, listen().await];
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let (url, webhook_address, ops_address) = (
            format!("http://{}", address(&grpc)),
            address(&webhook),
            address(&ops),
        );
        let telemetry = Telemetry::default();
        let stop = CancellationToken::new();
        let service = Service {
            config,
            sources: fixture_sources().into_iter().map(Arc::new).collect(),
            log: Arc::clone(&log),
            access: Access::anyone(),
            telemetry: telemetry.clone(),
        };
        let listeners = Listeners {
            grpc,
            webhook: Some(webhook),
            ops: Some(ops),
        };
        let running = transport::run(service, listeners, stop.clone().cancelled_owned());
        let running = tokio::spawn(running);
        let channel = connect(&url).await;
        Self {
            client: VerdictServiceClient::new(channel.clone()),
            channel,
            log,
            telemetry,
            ops: ops_address,
            webhook: webhook_address,
            stop,
            running,
        }
    }

    /// Ingests a webhook, whatever becomes of it.
    pub(crate) async fn ingest(&self, request: IngestRequest) {
        let _ = self.client.clone().ingest(request).await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(self.ops, "GET", path, "").await
    }

    async fn health(&self) -> ServingStatus {
        let mut client = HealthClient::new(self.channel.clone());
        let health = client.check(HealthCheckRequest::default()).await;
        health.expect("health").into_inner().status()
    }

    /// Waits until both say the same, and says what `/readyz` says.
    async fn readiness(&self, wanted: u16) -> String {
        let health = match wanted {
            200 => ServingStatus::Serving,
            _ => ServingStatus::NotServing,
        };
        let agreed = async {
            loop {
                let ready = self.get("/readyz").await;
                if ready.status == wanted && self.health().await == health {
                    return ready.body;
                }
                tokio::task::yield_now().await;
            }
        };
        let agreed = time::timeout(PATIENCE, agreed).await;
        agreed.unwrap_or_else(|_| panic!("it is never {wanted}"))
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

/// What came back over HTTP.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

/// Sends a request on a connection of its own. `headers` are lines.
pub(crate) async fn ask(to: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: verdict\r\nconnection: close\r\n{headers}\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = time::timeout(PATIENCE, exchange).await;
    let answer = answer.expect("an answer in time").expect("an answer");
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    Answer {
        status: status.parse().expect("a number"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn every_path_answers_get_and_head_and_nothing_else() {
    let server = Operated::start(memory_log()).await;
    for path in ["/metrics", "/livez", "/readyz"] {
        let got = server.get(path).await;
        assert_eq!(got.status, 200, "{path}");
        let content_type = got.header("content-type").unwrap();
        assert!(content_type.starts_with("text/plain;"), "{content_type}");
        assert_eq!(got.header("cache-control"), Some("no-store"));
        let head = ask(server.ops, "HEAD", path, "").await;
        assert_eq!((head.status, &*head.body), (200, ""));
        assert_eq!(head.header("content-type"), Some(content_type));
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let refused = ask(server.ops, method, path, "content-length: 0\r\n").await;
            let allow = refused.header("allow").unwrap_or_default();
            assert_eq!(
                (refused.status, allow),
                (405, "GET,HEAD"),
                "{method} {path}"
            );
        }
    }
    for path in [
        "/",
        "/metrics/",
        "/metrics/..",
        "/Metrics",
        "/readyz/log",
        "//livez",
        "/%6c",
    ] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn readyz_and_grpc_health_follow_the_log() {
    let log = TroubledLog::new();
    let server = Operated::start(Arc::clone(&log) as Arc<dyn EventLog>).await;
    let well = "log: ok\ndraining: no\nsources: 5 loaded\n";
    assert_eq!(server.readiness(200).await, well);
    assert!(
        server
            .get("/metrics")
            .await
            .body
            .contains("\nverdict_ready 1\n")
    );
    for _ in 0..2 {
        let why = "/a/secret/path is full".to_owned();
        log.set_health(Health::Unwritable(why));
        let trouble = server.readiness(503).await;
        assert!(trouble.starts_with("log: NOT READY: "), "{trouble}");
        // Anyone may ask.
        assert!(!trouble.contains("secret"), "{trouble}");
        let metrics = server.get("/metrics").await.body;
        assert!(metrics.contains("\nverdict_ready 0\n"));
        assert!(metrics.contains("\nverdict_log_writable 0\n"));
        assert_eq!(server.get("/livez").await.status, 200);
        log.set_health(Health::Well);
        assert_eq!(server.readiness(200).await, well);
    }
}

#[tokio::test]
async fn a_server_that_is_to_stop_is_not_ready_and_still_answers_operators() {
    let config = ServerConfig {
        drain_delay_seconds: 3600,
        ..server_config()
    };
    let server = Operated::start_with(config, memory_log()).await;
    server.readiness(200).await;
    server.stop.cancel();
    let draining = server.readiness(503).await;
    assert!(draining.contains("draining: NOT READY"), "{draining}");
    assert!(draining.contains("log: ok"), "{draining}");
    assert_eq!(server.get("/livez").await.status, 200);
    assert!(
        server
            .get("/metrics")
            .await
            .body
            .contains("\nverdict_ready 0\n")
    );
    server.running.abort();
}

#[tokio::test]
async fn the_end_of_a_certificate_is_told_and_follows_its_file() {
    const EXPIRY: &str = "verdict_tls_certificate_expiry_timestamp_seconds{listener=\"webhook\"} ";
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("tests");
    let (valid, expired) = (authority.server(), authority.expired_server());
    let both = Pair {
        certificate: [&valid.certificate, &*expired.certificate].concat(),
        ..valid.clone()
    };
    both.write(directory.path(), "tls");
    let config = tls_config(directory.path(), Clients::None);
    let config = ServerConfig {
        webhook_tls: config.tls,
        reload_interval_seconds: config.reload_interval_seconds,
        ..server_config()
    };
    let server = Operated::start_with(config, memory_log()).await;
    let expiry = async || {
        let metrics = server.get("/metrics").await.body;
        let expiry = metrics.lines().find_map(|line| line.strip_prefix(EXPIRY));
        expiry.expect("an expiry").parse::<u64>().expect("a number")
    };
    // The first of January 2020: whichever comes first counts.
    assert_eq!(expiry().await, 1_577_836_800);
    valid.write(directory.path(), "tls");
    let renewed = async {
        while expiry().await == 1_577_836_800 {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    let renewed = time::timeout(PATIENCE, renewed).await;
    renewed.expect("the new certificate in time");
    assert!(expiry().await > real_now().as_second() as u64);
}

#[tokio::test]
async fn a_consumer_may_be_called_anything_and_is_one_series() {
    const NAME: &str = r#"a"} 1 # {b="\ é"#;
    let server = Operated::start(memory_log()).await;
    let request = CommitCursorRequest {
        consumer: NAME.to_owned(),
        cursor: server.log.cursor(Position(0)).encode(),
        ..Default::default()
    };
    server.client.clone().commit_cursor(request).await.unwrap();
    let sample = r#"verdict_consumer_lag_events{consumer="a\"} 1 # {b=\"\\ é"} 0"#;
    let accept = "accept: application/openmetrics-text\r\n";
    for headers in ["", accept] {
        let metrics = ask(server.ops, "GET", "/metrics", headers).await.body;
        let samples = metrics.lines().filter(|line| line.contains("_lag_events{"));
        assert_eq!(samples.collect::<Vec<_>>(), [sample]);
    }
}
