//! What is counted and timed on the way of webhooks and calls.

use std::{sync::Arc, time::Duration};

use prometheus_client::{encoding::text, registry::Registry};
use tokio::{net::TcpListener, time};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use verdict::{
    config::ServerConfig,
    log::EventLog,
    proto::{
        IngestRequest, IngestStreamRequest, SubscribeRequest,
        admin_service_client::AdminServiceClient, verdict_service_client::VerdictServiceClient,
    },
    telemetry::Telemetry,
    transport::{self, Access, Listeners, Service},
};

use crate::{
    support::{
        PATIENCE, connect, fixture_sources, from_earliest, gu1_body, gu1_request, memory_log, next,
        next_event, requests, server_config,
    },
    troubled_log::TroubledLog,
};

/// A server of this process, and what it records.
struct Recording {
    telemetry: Telemetry,
    url: String,
    stop: CancellationToken,
}

impl Recording {
    async fn start(log: Arc<dyn EventLog>, config: ServerConfig) -> Self {
        let telemetry = Telemetry::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let service = Service {
            config,
            sources: fixture_sources().into_iter().map(Arc::new).collect(),
            log,
            access: Access::anyone(),
            telemetry: telemetry.clone(),
        };
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(transport::run(service, Listeners::grpc(listener), stopped));
        Self {
            telemetry,
            url,
            stop,
        }
    }

    async fn client(&self) -> VerdictServiceClient<tonic::transport::Channel> {
        VerdictServiceClient::new(connect(&self.url).await)
    }

    async fn refused(&self, request: IngestRequest) -> Code {
        let answer = self.client().await.ingest(request).await;
        answer.expect_err("refused").code()
    }

    /// The number after this, 0 where nothing was recorded yet.
    fn number(&self, name: &str) -> u64 {
        let mut registry = Registry::default();
        self.telemetry.metrics.register(&mut registry);
        let mut shown = String::new();
        text::encode(&mut shown, &registry).expect("text");
        let mut lines = shown.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |number| {
            let number = number.split_whitespace().next().expect("a number");
            number.parse().expect("a number")
        })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A webhook of Gu1 of which this was made.
fn gu1(change: impl FnOnce(&mut IngestRequest)) -> IngestRequest {
    let mut request = gu1_request(gu1_body("1"));
    change(&mut request);
    request
}

#[tokio::test]
async fn every_webhook_is_timed_and_every_refusal_has_one_reason() {
    let recording = Recording::start(memory_log(), server_config()).await;
    let mut client = recording.client().await;
    client.ingest(gu1(|_| {})).await.expect("a good webhook");
    let of = |provider: &str, reason: &str| {
        format!("ingest_rejected_total{{provider=\"{provider}\",reason=\"{reason}\"}}")
    };
    let cases: [(&str, &str, Code, IngestRequest); 5] = [
        (
            "unknown",
            "source_not_found",
            Code::NotFound,
            gu1(|it| it.provider = "Erika".to_owned()),
        ),
        (
            "gu1",
            "signature_missing",
            Code::InvalidArgument,
            gu1(|it| it.headers.clear()),
        ),
        (
            "gu1",
            "signature_repeated",
            Code::InvalidArgument,
            gu1(|it| it.headers.push(it.headers[0].clone())),
        ),
        (
            "gu1",
            "signature_malformed",
            Code::InvalidArgument,
            gu1(|it| it.headers[0].value = "Erika".to_owned()),
        ),
        (
            "gu1",
            "signature_mismatch",
            Code::InvalidArgument,
            gu1(|it| it.headers[0].value = "0".repeat(64)),
        ),
    ];
    for (provider, reason, code, request) in cases {
        assert_eq!(recording.refused(request).await, code, "{reason}");
        assert_eq!(recording.number(&of(provider, reason)), 1, "{reason}");
    }
    let webhooks = r#"ingest_duration_seconds_count{provider="gu1"}"#;
    assert_eq!(recording.number(webhooks), 5);
    let step = |step: &str| {
        let name = format!("ingest_step_duration_seconds_count{{step=\"{step}\"}}");
        recording.number(&name)
    };
    let steps = [
        "find_source",
        "verify",
        "normalize",
        "append",
        "answer",
        "decrypt",
    ];
    assert_eq!(steps.map(step), [6, 5, 1, 1, 1, 0]);
}

#[tokio::test]
async fn a_webhook_that_is_refused_before_its_way_begins_is_counted_too() {
    let recording = Recording::start(memory_log(), server_config()).await;
    let most = server_config().max_payload_bytes;
    let of_size = |bytes: usize| gu1(|it| it.payload = vec![b' '; bytes].into());
    let unary: [(&str, &str, IngestRequest); 6] = [
        ("gu1", "payload_too_large", of_size(most + 1)),
        ("unknown", "payload_too_large", of_size(4 * most)),
        ("gu1", "invalid_request", of_size(0)),
        ("unknown", "invalid_request", gu1(|it| it.provider.clear())),
        (
            "gu1",
            "headers_too_large",
            gu1(|it| it.headers = vec![it.headers[0].clone(); 101]),
        ),
        (
            "unknown",
            "headers_too_large",
            gu1(|it| {
                it.account = "Erika".to_owned();
                it.headers[0].value = "a".repeat(100_000);
            }),
        ),
    ];
    let of = |provider: &str, reason: &str| {
        let labels = format!("provider=\"{provider}\",reason=\"{reason}\"");
        recording.number(&format!("ingest_rejected_total{{{labels}}}"))
    };
    for (provider, reason, request) in unary {
        assert_eq!(recording.refused(request).await, Code::InvalidArgument);
        assert_eq!(of(provider, reason), 1, "{provider} {reason}");
    }

    let (sender, receiver) = requests();
    let answers = recording.client().await.ingest_stream(receiver).await;
    let mut answers = answers.unwrap().into_inner();
    let without = |correlation_id: &str, request| IngestStreamRequest {
        correlation_id: correlation_id.to_owned(),
        request,
    };
    for (provider, reason, request) in [
        (
            "gu1",
            "payload_too_large",
            without("", Some(of_size(most + 1))),
        ),
        ("unknown", "invalid_request", without("", None)),
        (
            "gu1",
            "invalid_request",
            without(&"a".repeat(129), Some(gu1(|_| {}))),
        ),
    ] {
        sender.send(request).await.unwrap();
        answers.message().await.unwrap().expect("an answer");
        assert_eq!(of(provider, reason), 2, "{provider} {reason}");
    }
    sender
        .send(without("", Some(of_size(4 * most))))
        .await
        .unwrap();
    assert_eq!(
        answers.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(of("unknown", "payload_too_large"), 2);
}

#[tokio::test]
async fn the_end_of_each_stream_is_counted() {
    let recording = Recording::start(memory_log(), server_config()).await;
    let mut client = recording.client().await;
    let ended = async |method: &str, code: &str| {
        let labels = format!("method=\"verdict.v1.VerdictService/{method}\",code=\"{code}\"");
        let counted = async {
            while recording.number(&format!("stream_ends_total{{{labels}}}")) == 0 {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        let counted = time::timeout(PATIENCE, counted).await;
        counted.unwrap_or_else(|_| panic!("{labels}"));
    };
    let all = SubscribeRequest {
        stop_when_caught_up: true,
        ..from_earliest()
    };
    let mut stream = client.subscribe(all).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    ended("Subscribe", "OK").await;

    drop(client.subscribe(from_earliest()).await.unwrap());
    ended("Subscribe", "CANCELLED").await;

    let (sender, receiver) = requests();
    let mut answers = client.ingest_stream(receiver).await.unwrap().into_inner();
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
    ended("IngestStream", "OK").await;

    let mut stream = client
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    recording.stop.cancel();
    while let Ok(Some(_)) = stream.message().await {}
    ended("Subscribe", "UNAVAILABLE").await;
}

#[tokio::test]
async fn a_log_that_cannot_write_is_a_reason_too() {
    let recording = Recording::start(TroubledLog::gone(), server_config()).await;
    assert_eq!(recording.refused(gu1(|_| {})).await, Code::Unavailable);
    let rejected = r#"ingest_rejected_total{provider="gu1",reason="log_unavailable"}"#;
    assert_eq!(recording.number(rejected), 1);
}

#[tokio::test]
async fn every_call_is_counted_and_every_delivery() {
    let recording = Recording::start(memory_log(), server_config()).await;
    let mut client = recording.client().await;
    client.ingest(gu1(|_| {})).await.expect("a good webhook");
    let mut stream = client
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    next_event(&mut stream).await;
    next(&mut stream).await;
    let (_sender, receiver) = requests();
    let _answers = client.ingest_stream(receiver).await.unwrap();
    let wrong = SubscribeRequest {
        consumer: "\n".to_owned(),
        ..from_earliest()
    };
    client.subscribe(wrong).await.unwrap_err();
    let mut nothing = tonic::client::Grpc::new(connect(&recording.url).await);
    nothing.ready().await.unwrap();
    let path = "/verdict.v1.VerdictService/Erika".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, SubscribeRequest>::default();
    let request = tonic::Request::new(from_earliest());
    nothing.unary(request, path, codec).await.unwrap_err();
    let mut admin = AdminServiceClient::new(connect(&recording.url).await);
    admin
        .get_status(verdict::proto::GetStatusRequest {})
        .await
        .unwrap();

    let expected = [
        ("verdict.v1.VerdictService/Ingest", "OK"),
        ("verdict.v1.VerdictService/Subscribe", "OK"),
        ("verdict.v1.VerdictService/Subscribe", "INVALID_ARGUMENT"),
        ("verdict.v1.VerdictService/IngestStream", "OK"),
        ("verdict.v1.AdminService/GetStatus", "OK"),
        ("unknown", "UNIMPLEMENTED"),
    ];
    for (method, code) in expected {
        let calls = format!("rpc_calls_total{{method=\"{method}\",code=\"{code}\"}}");
        assert_eq!(recording.number(&calls), 1, "{calls}");
    }
    let subscriptions =
        r#"rpc_duration_seconds_count{method="verdict.v1.VerdictService/Subscribe"}"#;
    assert_eq!(recording.number(subscriptions), 2);
    assert_eq!(recording.number("subscription_events_total"), 1);
}
