//! The manners of a gRPC service: health, reflection, many streams, an orderly end.

use std::time::Duration;

use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorProto;
use tokio::{io::AsyncReadExt, time};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use verdict::proto::{SubscribeMessage, verdict_service_client::VerdictServiceClient};

use crate::support::{PATIENCE, Server, from_earliest, gu1_body, gu1_request, next, reason};

pub(crate) const SERVICES: [&str; 3] = ["", "verdict.v1.VerdictService", "verdict.v1.AdminService"];

#[tokio::test]
async fn health_is_told_for_each_service_and_ends_first() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    let mut watches = Vec::new();
    for service in SERVICES {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        let status = watch.message().await.unwrap().unwrap().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
        watches.push(watch);
    }
    server.begin_stop();
    for watch in &mut watches {
        let status = time::timeout(PATIENCE, watch.message()).await.unwrap();
        assert_eq!(status.unwrap().unwrap().status(), ServingStatus::NotServing);
    }
    // Whoever watches on does not hold up the end.
    let begun = time::Instant::now();
    server.stop().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    for watch in &mut watches {
        assert!(watch.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn health_and_reflection_read_no_more_than_a_name() {
    let server = Server::start().await;
    let check = async |bytes| {
        let service = "x".repeat(bytes);
        let mut health = HealthClient::new(server.channel.clone());
        let checked = health.check(HealthCheckRequest { service }).await;
        checked.unwrap_err()
    };
    assert_eq!(check(4_000).await.code(), tonic::Code::NotFound);
    assert_eq!(reason(&check(5_000).await), "PAYLOAD_TOO_LARGE");
    let reflect = async |bytes: usize| {
        let mut client =
            v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
        let host = "x".repeat(bytes);
        let request = reflection_request(host);
        let answers = client.server_reflection_info(tokio_stream::once(request));
        answers.await.unwrap().into_inner().message().await
    };
    assert!(reflect(60_000).await.unwrap().is_some());
    assert!(reflect(70_000).await.ok().flatten().is_none());
    server.stop().await;
}

fn reflection_request(host: String) -> v1::ServerReflectionRequest {
    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    v1::ServerReflectionRequest {
        host,
        message_request: Some(list),
    }
}

#[tokio::test]
async fn nobody_keeps_others_from_asking_for_health() {
    const FLOOD: usize = 400;
    let server = Server::start().await;
    let honest = async || {
        let mut health = HealthClient::new(server.channel.clone());
        let checked = health.check(HealthCheckRequest::default());
        let checked = time::timeout(Duration::from_secs(5), checked).await;
        let status = checked.expect("an answer").expect("health").into_inner();
        assert_eq!(status.status(), ServingStatus::Serving);
    };
    // Requests that never come.
    let half = crate::support::connect(&server.url).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..FLOOD {
        let mut grpc = tonic::client::Grpc::new(half.clone());
        calls.spawn(async move {
            grpc.ready().await.unwrap();
            let path = "/grpc.health.v1.Health/Check".parse().unwrap();
            let never = tonic::Request::new(tokio_stream::pending::<HealthCheckRequest>());
            let codec = tonic_prost::ProstCodec::<_, HealthCheckResponse>::default();
            grpc.client_streaming(never, path, codec).await.map(drop)
        });
    }
    // The oldest have gone.
    for _ in 0..FLOOD - 256 {
        let ended = time::timeout(PATIENCE, calls.join_next()).await.unwrap();
        let ended = ended.unwrap().unwrap().unwrap_err();
        assert_eq!(reason(&ended), "OVERLOADED");
    }
    honest().await;
    // Answers that nobody takes.
    let endpoint = Endpoint::from_shared(server.url.clone()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(Some(0));
    let closed = endpoint.connect().await.unwrap();
    for _ in 0..FLOOD {
        let mut health = HealthClient::new(closed.clone());
        calls.spawn(async move {
            let checked = health.check(HealthCheckRequest::default()).await;
            checked.map(drop)
        });
    }
    time::sleep(Duration::from_millis(500)).await;
    honest().await;
    server.accept("1").await;
    calls.abort_all();
    server.stop().await;
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_their_connection() {
    let mut config = crate::support::server_config();
    config.max_connection_age_seconds = 6;
    let server = Server::start_with(config, crate::support::memory_log()).await;
    let watch = async || {
        let mut health = HealthClient::new(server.channel.clone());
        let watch = health.watch(HealthCheckRequest::default()).await;
        watch.map(tonic::Response::into_inner)
    };
    let mut watches = Vec::new();
    for _ in 0..256 {
        watches.push(watch().await.expect("a watch"));
    }
    assert_eq!(reason(&watch().await.unwrap_err()), "OVERLOADED");
    let mut health = HealthClient::new(server.channel.clone());
    let checked = health.check(HealthCheckRequest::default()).await;
    checked.expect("health, all the same");
    drop(watches.pop());
    let again = time::timeout(PATIENCE, async {
        loop {
            match watch().await {
                Ok(watch) => break watch,
                Err(_) => time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let mut again = again.await.expect("a place");
    again.message().await.unwrap().expect("a status");
    let ended = time::timeout(PATIENCE, again.message()).await.unwrap();
    assert_eq!(reason(&ended.unwrap_err()), "DRAINING");
}

#[tokio::test]
async fn who_asks_for_the_services_does_not_hold_up_the_end() {
    let server = Server::start().await;
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    sender
        .send(reflection_request(String::new()))
        .await
        .unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let answers = client.server_reflection_info(requests).await;
    let mut answers = answers.unwrap().into_inner();
    answers.message().await.unwrap().expect("the services");
    let begun = time::Instant::now();
    server.stop().await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    // It is told so, or it is at its end.
    assert!(answers.message().await.ok().flatten().is_none());
    drop(sender);
}

/// The files that describe a service, as a client that knows nothing gets them: one by the name of the service, the
/// others by the names of their imports.
macro_rules! reflected_files {
    ($version:ident, $channel:expr) => {{
        use $version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($channel);
        let service = "verdict.v1.VerdictService".to_owned();
        let mut wanted = vec![MessageRequest::FileContainingSymbol(service)];
        let mut files: Vec<FileDescriptorProto> = Vec::new();
        while let Some(request) = wanted.pop() {
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            };
            let answers = client
                .server_reflection_info(tokio_stream::once(request))
                .await;
            let answer = answers
                .unwrap()
                .into_inner()
                .message()
                .await
                .unwrap()
                .unwrap();
            let MessageResponse::FileDescriptorResponse(found) = answer.message_response.unwrap()
            else {
                panic!("a file is not found");
            };
            for file in found.file_descriptor_proto {
                let file = FileDescriptorProto::decode(&file[..]).unwrap();
                let imports = file.dependency.iter().cloned();
                wanted.extend(imports.map(MessageRequest::FileByFilename));
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        files
    }};
}

#[tokio::test]
async fn reflection_describes_every_service_in_both_versions() {
    let server = Server::start().await;
    let files = reflected_files!(v1, server.channel.clone());
    assert_eq!(files, reflected_files!(v1alpha, server.channel.clone()));
    // It is enough to build requests from, as grpcurl does.
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files).unwrap();
    let service = pool
        .get_service_by_name("verdict.v1.VerdictService")
        .unwrap();
    let methods: Vec<String> = service
        .methods()
        .map(|method| method.name().to_owned())
        .collect();
    assert_eq!(
        methods,
        [
            "Ingest",
            "IngestStream",
            "Subscribe",
            "GetEvent",
            "ListEvents",
            "GetVerification",
            "CommitCursor"
        ]
    );
    let subscribe = pool
        .get_message_by_name("verdict.v1.SubscribeResponse")
        .unwrap();
    let event = subscribe.get_field_by_name("event").unwrap().kind();
    assert_eq!(
        event.as_message().unwrap().full_name(),
        "verdict.v1.VerificationEvent"
    );
}

#[tokio::test]
async fn one_connection_carries_a_thousand_streams() {
    let server = Server::start().await;
    let subscriptions = (0..1000).map(|_| server.subscribe(from_earliest()));
    let mut streams = futures_util::future::join_all(subscriptions).await;
    server.accept("1").await;
    for stream in &mut streams {
        crate::support::next_event(stream).await;
    }
}

#[tokio::test]
async fn once_the_end_has_begun_no_webhook_is_taken() {
    let server = Server::start().await;
    // An open stream keeps its connection from being closed.
    let mut stream = server.subscribe(from_earliest()).await;
    server.begin_stop();
    let is_draining = |message| matches!(message, Some(SubscribeMessage::Draining(_)));
    while !is_draining(next(&mut stream).await.message) {}
    let refused = server.ingest(gu1_request(gu1_body("1"))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    // Either our answer, or a connection that is closed already.
    if !refused.details().is_empty() {
        assert_eq!(reason(&refused), "DRAINING");
    }
    assert_eq!(server.log.tail().end().0, 0);
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_up_the_end() {
    let mut config = crate::support::server_config();
    config.shutdown_grace_seconds = 1;
    let server = Server::start_with(config, crate::support::memory_log()).await;
    for id in 0..500 {
        server.accept(&id.to_string()).await;
    }
    // 500 events are more than 64 KiB, which is all that this client lets the server send.
    let endpoint = Endpoint::from_shared(server.url.clone())
        .unwrap()
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(64 << 10);
    let mut client = VerdictServiceClient::new(endpoint.connect().await.unwrap());
    let stuck = client.subscribe(from_earliest()).await.unwrap();
    time::sleep(Duration::from_millis(100)).await;
    let begun = time::Instant::now();
    server.stop().await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1),
        "nothing was stuck: {took:?}"
    );
    assert!(took < Duration::from_secs(30), "{took:?}");
    drop(stuck);
}

#[tokio::test]
async fn that_the_server_is_insecure_is_told_once_at_any_level() {
    let place = crate::cli::Place::new();
    for level in ["error", "warn", "off"] {
        let mut command = crate::cli::verdict();
        command
            .args(["serve", "--config"])
            .arg(place.path("verdict.toml"))
            .env("VERDICT__SERVER__INSECURE", "true")
            .env("VERDICT__TELEMETRY__LOG_LEVELS", level)
            .stderr(std::process::Stdio::piped());
        let mut process = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut told = String::new();
        let mut stderr = process.stderr.take().unwrap();
        let telling = async {
            let mut bytes = [0; 4096];
            loop {
                let read = stderr.read(&mut bytes).await.unwrap();
                told.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
                assert!(read > 0, "{level}: {told:?}");
            }
        };
        time::timeout(Duration::from_secs(3), telling)
            .await
            .expect_err("it goes on");
        assert_eq!(told.matches("server.insecure is set").count(), 1, "{told}");
        process.kill().await.unwrap();
    }
}
