//! Limits: what one caller can use up, and what it takes to refuse what is too large.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use futures_util::{StreamExt, future};
use prost::Message;
use tempfile::TempDir;
use tokio::time::{self, Duration, Instant};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use verdict::proto::{
    GetEventRequest, Header, IngestRequest, IngestStatus, IngestStreamRequest,
    ListQuarantinedRequest, ListSourcesRequest, QuarantineReason,
    admin_service_client::AdminServiceClient, verdict_service_client::VerdictServiceClient,
};

use super::{House, bearer, by, caller};
use crate::support::{PATIENCE, Server, from_earliest, gu1_body, gu1_request, next_event, reason};

const LIST: &str = "/verdict.v1.AdminService/ListSources";

pub(super) fn two_callers() -> String {
    let grants = &[("ingest subscribe admin", "")];
    format!("{}{}", caller("a", grants), caller("b", grants))
}

pub(super) fn is_overloaded<T>(answered: Result<T, Status>) -> bool {
    let Err(refused) = answered else {
        return false;
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(reason(&refused), "OVERLOADED");
    assert!(refused.get_details_retry_info().is_some());
    true
}

/// A client that takes nothing of any answer, but its headers.
async fn with_closed_window(house: &House) -> Channel {
    let endpoint = Endpoint::from_shared(house.url.clone()).expect("a URL");
    let endpoint = endpoint.initial_stream_window_size(Some(0));
    endpoint.connect().await.expect("a connection")
}

#[tokio::test]
async fn a_caller_makes_so_many_calls_in_a_second_and_keeps_nobody_from_making_his() {
    let house = House::open_with(&two_callers(), |server| {
        server.max_calls_per_second_per_caller = 5;
    })
    .await;
    let call = async |token: &str| house.call(LIST, bearer(token), Bytes::new()).await;
    let calls = future::join_all((0..40).map(|_| call("a"))).await;
    let refused = calls
        .into_iter()
        .filter(|answered| is_overloaded(answered.clone()))
        .count();
    assert!((20..=35).contains(&refused), "{refused}");
    call("b").await.expect("b has made none");

    // Webhooks of a stream count too, and wait.
    time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let requests = (0..15).map(|number| IngestStreamRequest {
        correlation_id: number.to_string(),
        request: Some(gu1_request(gu1_body(&number.to_string()))),
    });
    let stream = house
        .client
        .clone()
        .ingest_stream(by("a", tokio_stream::iter(requests)))
        .await;
    let answers: Vec<_> = stream.expect("a stream").into_inner().collect().await;
    assert_eq!(answers.len(), 15);
    assert!(answers.iter().all(Result::is_ok));
    assert!(
        begin.elapsed() > Duration::from_millis(1500),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(house.log.tail().end().0, 15);
    house.close().await;
}

#[tokio::test]
async fn what_is_refused_on_a_stream_counts_too() {
    let house = House::open_with(&two_callers(), |server| {
        server.max_calls_per_second_per_caller = 5;
    })
    .await;
    let refused = [
        (String::new(), None),
        ("x".repeat(200), Some(gu1_request(gu1_body("1")))),
        (String::new(), Some(IngestRequest::default())),
    ];
    let begin = Instant::now();
    let requests = (0..15).map(|number| {
        let (correlation_id, request) = refused[number % refused.len()].clone();
        IngestStreamRequest {
            correlation_id,
            request,
        }
    });
    let requests: Vec<_> = requests.collect();
    let stream = house
        .client
        .clone()
        .ingest_stream(by("a", tokio_stream::iter(requests)))
        .await;
    let answers: Vec<_> = stream.expect("a stream").into_inner().collect().await;
    assert_eq!(answers.len(), 15);
    assert!(answers.iter().all(Result::is_ok));
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    assert_eq!(house.log.tail().end().0, 0);
    house.close().await;
}

#[tokio::test]
async fn answers_that_nobody_takes_hold_a_share_of_the_calls_and_for_a_while_only() {
    let house = House::open_with(&two_callers(), |server| {
        server.max_concurrent_calls = 8;
        server.stalled_answer_timeout_seconds = 2;
    })
    .await;
    let closed = with_closed_window(&house).await;
    let hold = || {
        let mut admin = AdminServiceClient::new(closed.clone());
        async move { admin.list_sources(by("a", ListSourcesRequest {})).await }
    };
    // A quarter of all calls.
    let held: Vec<_> = (0..2).map(|_| tokio::spawn(hold())).collect();
    time::sleep(Duration::from_millis(500)).await;
    assert!(is_overloaded(hold().await));
    let call = async |token: &str| house.call(LIST, bearer(token), Bytes::new()).await;
    assert!(is_overloaded(call("a").await));
    call("b").await.expect("b has a share of its own");

    let back = async {
        while call("a").await.is_err() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    time::timeout(Duration::from_secs(10), back)
        .await
        .expect("what was held is given back");
    assert!(
        held.iter().all(|call| !call.is_finished()),
        "the client has not opened its window"
    );
    held.iter().for_each(tokio::task::JoinHandle::abort);
    house.close().await;
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_loses_its_stream_and_one_that_waits_does_not() {
    let house = House::open_with(&two_callers(), |server| {
        server.max_subscriptions_per_caller = 2;
        server.stalled_answer_timeout_seconds = 2;
    })
    .await;
    let mut waiting = house
        .client
        .clone()
        .subscribe(by("a", from_earliest()))
        .await;
    let waiting = waiting.as_mut().expect("a stream").get_mut();
    let closed = with_closed_window(&house).await;
    let mut stalled = VerdictServiceClient::new(closed)
        .subscribe(by("a", from_earliest()))
        .await;
    let stalled = stalled.as_mut().expect("a stream").get_mut();
    let again = async || {
        house
            .client
            .clone()
            .subscribe(by("a", from_earliest()))
            .await
    };
    assert!(is_overloaded(again().await));
    time::sleep(Duration::from_secs(3)).await;
    drop(again().await.expect("the stalled one is gone"));

    // The one that waits for us was not let go, although nothing came for longer than that.
    let ingested = house
        .client
        .clone()
        .ingest(by("a", gu1_request(gu1_body("1"))))
        .await;
    ingested.expect("taken");
    assert_eq!(
        next_event(waiting).await.source.expect("a source").provider,
        "gu1"
    );
    let nothing = time::timeout(Duration::from_millis(300), stalled.message()).await;
    assert!(
        nothing.is_err(),
        "nothing can be sent through a closed window"
    );
    house.close().await;
}

#[tokio::test]
async fn a_large_answer_comes_whole_and_in_order() {
    let server = Server::start().await;
    let body = |id: &str| {
        let padding = "x".repeat(900_000);
        gu1_body(id).replace(
            "\"status\"",
            &format!("\"entityName\":\"{padding}\",\"status\""),
        )
    };
    let accepted = server
        .ingest(gu1_request(body("large")))
        .await
        .expect("taken");
    let get = verdict::proto::GetDeliveryRequest {
        target: Some(verdict::proto::get_delivery_request::Target::EventId(
            accepted.event_id.clone(),
        )),
    };
    let got = server
        .admin
        .clone()
        .get_delivery(get)
        .await
        .expect("the delivery")
        .into_inner();
    assert!(got.delivery.expect("a delivery").payload == body("large"));
    let get = GetEventRequest {
        event_id: accepted.event_id,
        ..Default::default()
    };
    server
        .client
        .clone()
        .get_event(get)
        .await
        .expect("the event");
    server.stop().await;
}

#[tokio::test]
async fn who_fails_again_and_again_is_kept_waiting_and_nobody_else_is() {
    let house = House::open(&two_callers()).await;
    let begin = Instant::now();
    let failing = async {
        let calls = (0..150).map(|_| house.call(LIST, bearer("nobody"), Bytes::new()));
        for answered in future::join_all(calls).await {
            assert_eq!(answered.expect_err("nobody").code(), Code::Unauthenticated);
        }
        begin.elapsed()
    };
    let good = async {
        time::sleep(Duration::from_millis(300)).await;
        let begin = Instant::now();
        house
            .call(LIST, bearer("a"), Bytes::new())
            .await
            .expect("a caller");
        begin.elapsed()
    };
    let (failing, good) = future::join(failing, good).await;
    assert!(
        failing >= Duration::from_secs(1) && good < Duration::from_millis(900),
        "{failing:?} {good:?}"
    );
    house.close().await;
}

#[tokio::test]
async fn metadata_is_bounded() {
    let house = House::open(&two_callers()).await;
    let mut large = bearer("a");
    for number in 0..40 {
        let name = format!("x-{number}").parse::<tonic::metadata::MetadataKey<_>>();
        large.insert(
            name.expect("a name"),
            "x".repeat(500).parse().expect("a value"),
        );
    }
    house
        .call(LIST, large, Bytes::new())
        .await
        .expect_err("too much metadata");
    house
        .call(LIST, bearer("a"), Bytes::new())
        .await
        .expect("the connection goes on");
    house.close().await;
}

#[tokio::test]
async fn json_that_is_nested_too_deeply_is_quarantined_before_an_adapter_sees_it() {
    let server = Server::start().await;
    let body = |id: &str, depth: usize| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        gu1_body(id).replace("{\"event\"", &format!("{{\"deep\":{open}{close},\"event\""))
    };
    let ingest = async |id: &str, depth| {
        let answer = server.ingest(gu1_request(body(id, depth))).await;
        answer.expect("a genuine webhook").status()
    };
    assert_eq!(ingest("64", 64).await, IngestStatus::Accepted);
    for depth in [65, 127, 128, 200, 400_000] {
        assert_eq!(
            ingest("deep", depth).await,
            IngestStatus::Quarantined,
            "{depth}"
        );
    }
    let listed = server
        .admin
        .clone()
        .list_quarantined(ListQuarantinedRequest::default())
        .await;
    let listed = listed.expect("a list").into_inner().quarantined;
    assert_eq!(listed.len(), 5);
    for one in listed {
        assert_eq!(one.reason(), QuarantineReason::Unparseable);
        assert_eq!(
            one.detail,
            "the JSON is nested deeper than 64 levels (server.max_json_depth)"
        );
    }
    server.stop().await;
}

/// The binary, with callers, on a port of its own.
struct Process {
    child: Child,
    channel: Channel,
    directory: TempDir,
}

impl Process {
    async fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let config = format!(
            "{}[server]\ngrpc_listen = \"127.0.0.1:0\"\nwebhook_listen = \"\"\nops_listen = \"\"\n[log]\npath = \"{}\"\n\
             [[sources]]\nprovider = \"gu1\"\nsecrets = [{{ id = \"a\", env = \"GU1_SECRET\" }}]\n",
            two_callers(),
            at("log").display()
        );
        fs::write(at("verdict.toml"), config).expect("a file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_verdict"))
            .args(["serve", "--config"])
            .arg(at("verdict.toml"))
            .env("GU1_SECRET", "s")
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = lines.find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.expect("a line")).ok()?;
            Some(line["server.address"].as_str()?.to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("http://{}", address.expect("an address"));
        Self {
            channel: crate::support::connect(&url).await,
            child,
            directory,
        }
    }

    /// The most memory that it has had so far.
    fn most_kib(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(status).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn half_a_million_headers_are_refused_before_they_take_memory() {
    let process = Process::start().await;
    let large = IngestRequest {
        payload: vec![b'x'; 1_170_000].into(),
        provider: "gu1".to_owned(),
        ..Default::default()
    };
    let flood = IngestRequest {
        provider: "gu1".to_owned(),
        headers: vec![Header::default(); 580_000],
        ..Default::default()
    };
    assert!(flood.encoded_len() < large.encoded_len());
    let send = async |request: &IngestRequest| {
        let calls = (0..8).map(|_| {
            let mut client = VerdictServiceClient::new(process.channel.clone());
            async move { client.ingest(by("a", request.clone())).await.map(drop) }
        });
        time::timeout(PATIENCE, future::join_all(calls))
            .await
            .expect("answers in time")
    };
    // What any requests of this size take.
    for refused in send(&large).await {
        assert_eq!(
            reason(&refused.expect_err("too large")),
            "PAYLOAD_TOO_LARGE"
        );
    }
    let before = process.most_kib();
    for _ in 0..3 {
        for refused in send(&flood).await {
            let refused = refused.expect_err("too many headers");
            assert_eq!(reason(&refused), "INVALID_REQUEST");
            assert_eq!(refused.message(), "headers holds more than 10000 headers");
        }
    }
    let grown = process.most_kib().saturating_sub(before);
    assert!(
        grown < 24 << 10,
        "{grown} KiB more than 8 large requests take"
    );

    // The same process keeps its audit log beside its events, for nobody else to read.
    let mut admin = AdminServiceClient::new(process.channel.clone());
    admin
        .list_sources(by("b", ListSourcesRequest {}))
        .await
        .expect("a list");
    let audit = process.directory.path().join("log/audit.jsonl");
    assert!(
        fs::read_to_string(&audit)
            .expect("an audit log")
            .contains("\"caller\":\"b\"")
    );
    let mode = fs::metadata(&audit)
        .expect("an audit log")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}
