//! What is counted and timed on the way of webhooks and calls.

use std::sync::Arc;

use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use verdict::{
    config::ServerConfig,
    log::EventLog,
    proto::{
        IngestRequest, SubscribeRequest, admin_service_client::AdminServiceClient,
        verdict_service_client::VerdictServiceClient,
    },
    telemetry::Telemetry,
    transport::{self, Access, Listeners, Service},
};

use crate::{
    support::{
        connect, fixture_sources, from_earliest, gu1_body, gu1_request, memory_log, next,
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
        "authenticate",
        "find_source",
        "verify",
        "normalize",
        "append",
        "answer",
        "decrypt",
    ];
    assert_eq!(steps.map(step), [6, 6, 5, 1, 1, 1, 0]);
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
