//! Traces, as a collector receives them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};
use tonic::{Code, Request, client::Grpc, codec::Streaming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use verdict::{
    proto::{
        GetEventRequest, IngestRequest, IngestStatus, IngestStreamRequest, SubscribeMessage,
        SubscribeRequest, SubscribeResponse, VerificationEvent,
        verdict_service_client::VerdictServiceClient,
    },
    provider::signature::sha256,
};

use crate::{
    cli::{Place, Serving, run, verdict},
    ops::ask,
    otlp::{Receiver, Span},
    pki::Authority,
    support::{
        PATIENCE, connect, fixture_source, from_earliest, gu1_body, gu1_request, next_event,
        requests, sign,
    },
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A call that is part of a trace: one that is sent, or not.
fn traced<T>(message: T, is_sent: bool) -> Request<T> {
    let flags = if is_sent { "01" } else { "00" };
    let mut request = Request::new(message);
    let traceparent = format!("00-{TRACE}-{CALLER}-{flags}");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", traceparent.parse().unwrap());
    metadata.insert("tracestate", "vendor=value".parse().unwrap());
    request
}

fn place(receiver: &Receiver, sample_ratio: &str) -> Place {
    let place = Place::new();
    place.configure(&format!(
        "[telemetry.otlp]\nendpoint = \"{}\"\nsample_ratio = {sample_ratio}\n",
        receiver.url
    ));
    place
}

async fn ingest(serving: &Serving, request: Request<IngestRequest>) -> String {
    let answer = serving.client().await.ingest(request).await;
    let answer = answer.expect("a good webhook").into_inner();
    assert_eq!(answer.status(), IngestStatus::Accepted);
    answer.event_id
}

async fn event(serving: &Serving, event_id: &str) -> VerificationEvent {
    let request = GetEventRequest {
        event_id: event_id.to_owned(),
        ..Default::default()
    };
    let found = serving.client().await.get_event(request).await;
    found.unwrap().into_inner().event.unwrap()
}

/// Ends the server, which sends what it has left to send.
fn end(mut serving: Serving) {
    assert!(serving.end("-TERM").success());
}

/// The one span with this name.
fn only<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found
        .next()
        .unwrap_or_else(|| panic!("no {name}: {spans:#?}"));
    assert!(found.next().is_none(), "{name} is there twice: {spans:#?}");
    span
}

/// The names of the spans that are parts of this one.
fn parts<'s>(spans: &'s [Span], whole: &Span) -> BTreeSet<&'s str> {
    let parts = spans.iter().filter(|span| span.parent_id == whole.span_id);
    parts
        .map(|span| {
            assert_eq!(span.trace_id, whole.trace_id);
            assert_eq!(span.kind, SpanKind::Internal, "{span:?}");
            assert!(whole.time.start <= span.time.start, "{span:?}");
            assert!(span.time.end <= whole.time.end, "{span:?}");
            span.name.as_str()
        })
        .collect()
}

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

const STEPS: [&str; 5] = ["find_source", "verify", "normalize", "append", "answer"];

#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace_and_each_step_a_part_of_it() {
    let receiver = Receiver::start();
    let place = place(&receiver, "0.0");
    place.configure(
        "headers = { authorization = { env = \"OTLP_TOKEN\" } }\n\
         resource = { \"deployment.environment.name\" = \"test\" }\n",
    );
    let serving = place.serve_with(&[("OTLP_TOKEN", "Bearer a-token-of-the-tests")]);
    let event_id = ingest(&serving, traced(gu1_request(gu1_body("1")), true)).await;
    let event = event(&serving, &event_id).await;
    end(serving);

    // What the caller has sent of its trace decides; what begins here is not sent.
    let spans = receiver.spans();
    let call = only(&spans, "verdict.v1.VerdictService/Ingest");
    assert_eq!(call.kind, SpanKind::Server);
    assert_eq!(
        (call.trace_id.as_str(), call.parent_id.as_str()),
        (TRACE, CALLER)
    );
    let expected = attributes(&[
        ("rpc.system.name", "grpc"),
        ("rpc.method", "verdict.v1.VerdictService/Ingest"),
        ("rpc.response.status_code", "OK"),
        ("network.peer.address", "127.0.0.1"),
        ("provider.name", "gu1"),
        ("verdict.ingest.status", "accepted"),
        ("event.id", &event_id),
    ]);
    assert_eq!(call.attributes, expected);
    assert!(!call.is_error);
    let steps: BTreeSet<_> = STEPS.into_iter().chain(["authenticate"]).collect();
    assert_eq!(parts(&spans, call), steps);
    assert_eq!(spans.len(), 1 + steps.len(), "{spans:#?}");

    // The event leads back to our span, not to the caller's.
    let trace = event.trace.unwrap();
    assert_eq!(trace.traceparent, format!("00-{TRACE}-{}-01", call.span_id));
    assert_eq!(trace.tracestate, "vendor=value");

    let token = BTreeSet::from(["Bearer a-token-of-the-tests".to_owned()]);
    assert_eq!(receiver.metadata("authorization"), token);
    let resource = attributes(&[
        ("service.name", "verdict"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.name", "opentelemetry"),
    ]);
    let mut instances = BTreeSet::new();
    for mut one in receiver.resources() {
        instances.extend(one.remove("service.instance.id"));
        assert!(one.remove("telemetry.sdk.version").is_some());
        assert_eq!(one, resource);
    }
    assert_eq!(instances.len(), 1, "{instances:?}");
    let instance = instances.pop_first().unwrap();
    assert!(uuid::Uuid::parse_str(&instance).is_ok(), "{instance}");
}

/// Posts a webhook of Gu1 at the edge, with a trace that nobody is to believe.
async fn post(serving: &Serving, path: &str, id: &str) -> String {
    let webhook = sign(&fixture_source("gu1"), gu1_body(id));
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
    request += &format!("content-length: {}\r\n", webhook.payload.len());
    request += &format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n");
    for (name, value) in webhook.headers.iter() {
        request += &format!("{name}: {value}\r\n");
    }
    let request = [request.as_bytes(), b"\r\n", &webhook.payload].concat();
    let address = serving.webhook.as_deref().expect("it listens for webhooks");
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(&request).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_webhook_that_is_posted_begins_a_trace_of_its_own() {
    let receiver = Receiver::start();
    let place = place(&receiver, "1.0");
    place.listen_for_http();
    let serving = place.serve();
    let answer = post(&serving, "/webhooks/gu1", "1").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = post(&serving, "/webhooks/somebody/else", "2").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let mut stream = serving.client().await.subscribe(from_earliest()).await;
    let event = next_event(stream.as_mut().unwrap().get_mut()).await;
    end(serving);

    let spans = receiver.spans();
    let call = only(&spans, "POST /webhooks/{provider}/{account}");
    assert_eq!(call.kind, SpanKind::Server);
    assert_ne!(call.trace_id, TRACE);
    assert_eq!(call.parent_id, "");
    let expected = attributes(&[
        ("http.request.method", "POST"),
        ("http.route", "/webhooks/{provider}/{account}"),
        ("url.scheme", "http"),
        ("url.path", "/webhooks/gu1"),
        ("http.response.status_code", "200"),
        ("network.peer.address", "127.0.0.1"),
        ("provider.name", "gu1"),
        ("verdict.ingest.status", "accepted"),
        ("event.id", &event.event_id),
    ]);
    assert_eq!(call.attributes, expected);
    let steps = ["find_source", "verify", "normalize", "append"];
    assert_eq!(parts(&spans, call), steps.into());
    let of_event = format!("00-{}-{}-01", call.trace_id, call.span_id);
    assert_eq!(event.trace.unwrap().traceparent, of_event);

    // What the sender has made up is not told.
    let unknown = only(&spans, "HTTP");
    let expected = attributes(&[
        ("http.request.method", "POST"),
        ("url.scheme", "http"),
        ("http.response.status_code", "404"),
        ("network.peer.address", "127.0.0.1"),
    ]);
    assert_eq!(unknown.attributes, expected);
    assert!(!receiver.text().contains("somebody"));
}

#[tokio::test]
async fn what_a_caller_does_not_send_is_not_sent_and_what_begins_here_is() {
    let receiver = Receiver::start();
    let place = place(&receiver, "1.0");
    let serving = place.serve();
    let mut stream = subscribe_live(&serving, "risk").await;
    let unsent = ingest(&serving, traced(gu1_request(gu1_body("1")), false)).await;
    let trace = event(&serving, &unsent).await.trace.unwrap();
    let ours = ingest(&serving, Request::new(gu1_request(gu1_body("2")))).await;
    for expected in [&unsent, &ours] {
        assert_eq!(next_event(&mut stream).await.event_id, *expected);
    }
    drop(stream);
    end(serving);

    assert!(trace.traceparent.starts_with(&format!("00-{TRACE}-")));
    assert!(trace.traceparent.ends_with("-00"));
    let spans = receiver.spans();
    assert!(
        spans.iter().all(|span| span.trace_id != TRACE),
        "{spans:#?}"
    );
    let call = only(&spans, "verdict.v1.VerdictService/Ingest");
    assert_eq!(call.parent_id, "");
    assert_eq!(call.attributes["event.id"], ours);
    // Only what leads somewhere is linked.
    let delivery = only(&spans, "deliver events");
    assert_eq!(delivery.links[0].0, call.trace_id);
}

/// A subscription that has caught up with nothing.
async fn subscribe_live(serving: &Serving, consumer: &str) -> Streaming<SubscribeResponse> {
    let request = SubscribeRequest {
        consumer: consumer.to_owned(),
        ..from_earliest()
    };
    let stream = serving.client().await.subscribe(request).await;
    let mut stream = stream.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().message;
    assert!(matches!(first, Some(SubscribeMessage::CaughtUp(_))));
    stream
}

#[tokio::test]
async fn a_delivery_is_linked_to_the_trace_of_its_event() {
    let receiver = Receiver::start();
    let place = place(&receiver, "0.0");
    let serving = place.serve();
    let mut named = subscribe_live(&serving, "risk").await;
    let mut nameless = subscribe_live(&serving, "").await;
    let event_id = ingest(&serving, traced(gu1_request(gu1_body("1")), true)).await;
    for stream in [&mut named, &mut nameless] {
        assert_eq!(next_event(stream).await.event_id, event_id);
    }
    // Who reads it again does not make it new.
    let again = serving.client().await.subscribe(from_earliest()).await;
    let again = next_event(again.unwrap().get_mut()).await;
    assert_eq!(again.event_id, event_id);
    end(serving);

    let spans = receiver.spans();
    let call = only(&spans, "verdict.v1.VerdictService/Ingest");
    let deliveries: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "deliver events")
        .collect();
    assert_eq!(deliveries.len(), 2, "{spans:#?}");
    for delivery in &deliveries {
        assert_eq!(delivery.kind, SpanKind::Client);
        // A trace of its own.
        assert_eq!(delivery.parent_id, "");
        assert_ne!(delivery.trace_id, TRACE);
        assert_eq!(delivery.links, [(TRACE.to_owned(), call.span_id.clone())]);
    }
    let mut expected = attributes(&[
        ("messaging.system", "verdict"),
        ("messaging.operation.name", "deliver"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "events"),
        ("messaging.message.id", &event_id),
        ("messaging.consumer.group.name", "risk"),
    ]);
    let named = deliveries.iter().find(|span| span.attributes == expected);
    assert!(named.is_some(), "{deliveries:#?}");
    expected.remove("messaging.consumer.group.name");
    let nameless = deliveries.iter().find(|span| span.attributes == expected);
    assert!(nameless.is_some(), "{deliveries:#?}");
}

#[tokio::test]
async fn each_webhook_of_a_stream_begins_a_trace_which_is_linked_to_that_of_the_stream() {
    let receiver = Receiver::start();
    let place = place(&receiver, "1.0");
    let serving = place.serve();
    let (sender, receiver_of_requests) = requests();
    let mut client = serving.client().await;
    let opened = client
        .ingest_stream(traced(receiver_of_requests, true))
        .await;
    let mut answers = opened.unwrap().into_inner();
    let unknown = IngestRequest {
        provider: "nobody".to_owned(),
        ..gu1_request(gu1_body("2"))
    };
    for request in [Some(gu1_request(gu1_body("1"))), Some(unknown), None] {
        let request = IngestStreamRequest {
            correlation_id: String::new(),
            request,
        };
        sender.send(request).await.unwrap();
        answers.message().await.unwrap().expect("an answer");
    }
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
    end(serving);

    let spans = receiver.spans();
    let stream = only(&spans, "verdict.v1.VerdictService/IngestStream");
    assert_eq!(
        (stream.trace_id.as_str(), stream.parent_id.as_str()),
        (TRACE, CALLER)
    );
    assert_eq!(parts(&spans, stream), BTreeSet::from(["authenticate"]));
    let webhooks: Vec<_> = spans.iter().filter(|span| span.name == "ingest").collect();
    let traces: BTreeSet<_> = webhooks.iter().map(|span| span.trace_id.as_str()).collect();
    assert_eq!(traces.len(), 3, "{spans:#?}");
    let of_stream = [(TRACE.to_owned(), stream.span_id.clone())];
    for webhook in &webhooks {
        assert_ne!(webhook.trace_id, TRACE);
        assert_eq!(webhook.parent_id, "");
        assert_eq!(webhook.links, of_stream);
    }
    let taken = webhooks
        .iter()
        .find(|span| span.attributes.contains_key("event.id"));
    assert_eq!(parts(&spans, taken.unwrap()), BTreeSet::from(STEPS));
    let unknown = webhooks
        .iter()
        .find(|span| parts(&spans, span) == BTreeSet::from(["find_source"]));
    assert_eq!(
        unknown.unwrap().attributes,
        attributes(&[]),
        "a sender may write any name"
    );
    assert_eq!(webhooks.len(), 3);
    assert!(webhooks.iter().all(|span| !span.is_error));
}

#[tokio::test]
async fn the_trace_of_a_stream_does_not_decide_for_its_webhooks() {
    let receiver = Receiver::start();
    let place = place(&receiver, "0.0");
    let serving = place.serve();
    let (sender, receiver_of_requests) = requests();
    let mut client = serving.client().await;
    let opened = client
        .ingest_stream(traced(receiver_of_requests, true))
        .await;
    let request = IngestStreamRequest {
        correlation_id: String::new(),
        request: Some(gu1_request(gu1_body("1"))),
    };
    sender.send(request).await.unwrap();
    drop(sender);
    let mut answers = opened.unwrap().into_inner();
    answers.message().await.unwrap().expect("an answer");
    assert!(answers.message().await.unwrap().is_none());
    end(serving);
    let spans = receiver.spans();
    only(&spans, "verdict.v1.VerdictService/IngestStream");
    assert_eq!(spans.len(), 2, "{spans:#?}");
}

#[tokio::test]
async fn only_what_is_our_fault_is_an_error() {
    let receiver = Receiver::start();
    let place = place(&receiver, "1.0");
    let serving = place.serve();
    let mut client = serving.client().await;
    let mut forged = gu1_request(gu1_body("1"));
    forged.headers[0].value = "0".repeat(64);
    let refused = client.ingest(forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // Nothing that a caller writes becomes the name of a span.
    let mut channel = Grpc::new(connect(&serving.endpoint).await);
    channel.ready().await.unwrap();
    let path = "/verdict.v1.VerdictService/Erika".parse().unwrap();
    let codec = ProstCodec::<SubscribeRequest, SubscribeResponse>::default();
    let unknown = channel
        .unary(Request::new(from_earliest()), path, codec)
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    // Probes ask all day.
    let mut health = HealthClient::new(connect(&serving.endpoint).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    end(serving);

    let spans = receiver.spans();
    let forged = only(&spans, "verdict.v1.VerdictService/Ingest");
    assert!(!forged.is_error);
    let expected = attributes(&[
        ("rpc.system.name", "grpc"),
        ("rpc.method", "verdict.v1.VerdictService/Ingest"),
        ("rpc.response.status_code", "INVALID_ARGUMENT"),
        ("network.peer.address", "127.0.0.1"),
        ("provider.name", "gu1"),
        ("verdict.ingest.rejection", "signature_mismatch"),
    ]);
    assert_eq!(forged.attributes, expected);
    let unknown = only(&spans, "grpc");
    assert!(unknown.is_error);
    let expected = attributes(&[
        ("rpc.system.name", "grpc"),
        ("rpc.method", "_OTHER"),
        ("rpc.response.status_code", "UNIMPLEMENTED"),
        ("error.type", "UNIMPLEMENTED"),
        ("network.peer.address", "127.0.0.1"),
    ]);
    assert_eq!(unknown.attributes, expected);
    assert!(!receiver.text().contains("Erika"));
    assert!(!receiver.text().contains("Health"));
}

#[tokio::test]
async fn a_caller_is_named_and_its_trace_believed_once_it_is_known() {
    let receiver = Receiver::start();
    let place = place(&receiver, "1.0");
    let token = "a-token-of-the-tests";
    place.configure(&format!(
        "[[callers]]\nname = \"gateway\"\ntokens = [{{ id = \"a\", sha256 = \"{}\" }}]\n\
         [[callers.grants]]\nscopes = [\"ingest\"]\n",
        base16ct::lower::encode_string(&sha256(token.as_bytes()))
    ));
    let serving = place.serve();
    let mut client = serving.client().await;
    for is_sent in [true, false] {
        let unknown = traced(gu1_request(gu1_body("1")), is_sent);
        let refused = client.ingest(unknown).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let mut known = traced(gu1_request(gu1_body("1")), true);
    let bearer = format!("Bearer {token}").parse().unwrap();
    known.metadata_mut().insert("authorization", bearer);
    ingest(&serving, known).await;
    end(serving);

    let spans = receiver.spans();
    let calls = spans.iter().filter(|span| span.kind == SpanKind::Server);
    let named = calls.map(|span| {
        assert!(parts(&spans, span).contains("authenticate"), "{spans:#?}");
        let attribute = |name: &str| span.attributes.get(name).map(String::as_str);
        (
            attribute("rpc.response.status_code").unwrap(),
            attribute("caller.name"),
            span.trace_id == TRACE,
        )
    });
    let mut named: Vec<_> = named.collect();
    named.sort_unstable();
    // What somebody unknown says of a trace decides nothing.
    let unknown = ("UNAUTHENTICATED", None, false);
    let expected = [("OK", Some("gateway"), true), unknown, unknown];
    assert_eq!(named, expected);
    assert!(!receiver.text().contains(token));
}

#[test]
fn every_step_is_seen_with_a_provider_that_encrypts_and_a_collector_that_does() {
    let authority = Authority::new("collectors");
    let receiver = Receiver::start_tls(&authority.server());
    let place = place(&receiver, "1.0");
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    place.configure(&format!("ca_file = {:?}\n", place.path("ca.pem")));
    let serving = place.serve();
    let config = place.path("verdict.toml");
    let arguments = ["send", "--provider", "kayle", "--sample", "--config"];
    let sent = run(verdict()
        .args(arguments)
        .arg(config)
        .env("VERDICT_ENDPOINT", &serving.endpoint));
    assert!(sent.status.success(), "{sent:?}");
    end(serving);

    let spans = receiver.spans();
    let call = only(&spans, "verdict.v1.VerdictService/Ingest");
    let steps: BTreeSet<_> = STEPS
        .into_iter()
        .chain(["authenticate", "decrypt"])
        .collect();
    assert_eq!(parts(&spans, call), steps);
}

/// How many spans were lost, as soon as there are some.
async fn spans_lost(serving: &Serving) -> u64 {
    let ops = serving.ops.as_deref().expect("it answers operators");
    loop {
        let metrics = ask(ops.parse().unwrap(), "GET", "/metrics", "").await.body;
        let lines = metrics.lines();
        let mut lost =
            lines.filter_map(|line| line.strip_prefix("verdict_traces_spans_lost_total "));
        match lost.next().expect("a metric") {
            "0" => time::sleep(Duration::from_millis(20)).await,
            lost => return lost.parse().unwrap(),
        }
    }
}

/// A collector that is not there, and one that takes connections and says nothing.
#[tokio::test]
async fn a_collector_that_does_not_answer_holds_up_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &gone].map(|listener| listener.local_addr().unwrap());
    drop(gone);
    for address in addresses {
        let place = Place::new();
        place.listen_for_http();
        place.configure(&format!(
            "[telemetry.otlp]\nendpoint = \"http://{address}\"\ntimeout_seconds = 3600\n"
        ));
        let serving = place.serve();
        let mut client: VerdictServiceClient<_> = serving.client().await;
        let began = Instant::now();
        for number in 0..200 {
            let answer = client
                .ingest(gu1_request(gu1_body(&number.to_string())))
                .await;
            assert_eq!(
                answer.unwrap().into_inner().status(),
                IngestStatus::Accepted
            );
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
        if address == addresses[1] {
            let lost = time::timeout(PATIENCE, spans_lost(&serving)).await;
            assert!(lost.expect("they are counted") > 0);
        }
        let began = Instant::now();
        end(serving);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
}
