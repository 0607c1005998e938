//! How the server stops: it says so first, and whatever its clients do, it ends in time.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task, time,
};
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use verdict::{
    config::ServerConfig,
    log::Health,
    proto::{
        IngestStatus, IngestStreamRequest, SubscribeMessage, SubscribeResponse,
        verdict_service_client::VerdictServiceClient,
    },
    transport::ServeError,
};

use crate::{
    cli::{Place, Serving, verdict},
    support::{
        PATIENCE, Server, from_earliest, gu1_body, gu1_request, memory_log, next, next_event,
        reason, requests, server_config,
    },
    troubled_log::TroubledLog,
};

async fn watch_health(channel: &Channel) -> Streaming<HealthCheckResponse> {
    let watch = HealthClient::new(channel.clone())
        .watch(HealthCheckRequest::default())
        .await;
    watch.expect("a watch").into_inner()
}

async fn next_health(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    let told = time::timeout(PATIENCE, watch.message()).await;
    let told = told.expect("an answer in time").expect("no error");
    told.expect("no end").status()
}

#[tokio::test]
async fn a_server_that_is_about_to_stop_says_so_and_goes_on_for_the_delay() {
    const DELAY: Duration = Duration::from_secs(2);
    let config = ServerConfig {
        drain_delay_seconds: DELAY.as_secs(),
        ..server_config()
    };
    let server = Server::start_with(config, memory_log()).await;
    let mut health = watch_health(&server.channel).await;
    assert_eq!(next_health(&mut health).await, ServingStatus::Serving);
    let mut stream = server.subscribe(from_earliest()).await;

    let begun = Instant::now();
    server.begin_stop();
    assert_eq!(next_health(&mut health).await, ServingStatus::NotServing);
    let accepted = server.accept("1").await;
    assert_eq!(next_event(&mut stream).await.event_id, accepted.event_id);
    assert!(begun.elapsed() < DELAY, "too slow to see the delay");

    let last = loop {
        let message = next(&mut stream).await;
        if let Some(SubscribeMessage::Draining(_)) = message.message {
            break message;
        }
    };
    assert!(begun.elapsed() >= DELAY);
    assert_eq!(last.cursor, accepted.cursor);
    let ended = stream.message().await.unwrap_err();
    assert_eq!(reason(&ended), "DRAINING");
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_log_that_fails_for_good_ends_the_delay() {
    let log = TroubledLog::new();
    let config = ServerConfig {
        drain_delay_seconds: 3600,
        ..server_config()
    };
    let server = Server::start_with(config, log.clone()).await;
    let mut health = watch_health(&server.channel).await;
    assert_eq!(next_health(&mut health).await, ServingStatus::Serving);
    server.begin_stop();
    assert_eq!(next_health(&mut health).await, ServingStatus::NotServing);
    log.set_health(Health::Failed("sync".to_owned()));
    drop(health);
    let ended = server.ended().await;
    assert!(matches!(ended, Err(ServeError::Log(why)) if why == "sync"));
}

/// Waits for the process to end after a signal.
async fn end(mut serving: Serving, signal: &'static str) -> (ExitStatus, Duration) {
    let begun = Instant::now();
    let ended = task::spawn_blocking(move || serving.end(signal));
    let status = time::timeout(PATIENCE, ended).await;
    let status = status.expect("it ends in time").expect("no panic");
    (status, begun.elapsed())
}

async fn says(address: &str, beginning: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    connection
        .write_all(beginning.as_bytes())
        .await
        .expect("it is open");
    connection
}

/// A subscriber that takes nothing of what there is for it.
async fn stuck_subscriber(endpoint: String) -> Streaming<SubscribeResponse> {
    let endpoint = Endpoint::from_shared(endpoint)
        .expect("a URL")
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(64 << 10);
    let channel = endpoint.connect().await.expect("a connection");
    let stream = VerdictServiceClient::new(channel)
        .subscribe(from_earliest())
        .await;
    stream.expect("a good subscription").into_inner()
}

#[tokio::test]
async fn whatever_clients_do_the_process_ends_in_time_and_loses_nothing() {
    const GRACE: Duration = Duration::from_secs(2);
    let place = Place::new();
    place.listen_for_http();
    place.configure_server(&format!("shutdown_grace_seconds = {}", GRACE.as_secs()));
    let serving = place.serve();
    let mut client = serving.client().await;
    let mut accepted = Vec::new();
    // More than the stuck subscriber takes.
    for id in 0..300 {
        let answer = client.ingest(gu1_request(gu1_body(&id.to_string()))).await;
        let answer = answer.expect("a good webhook").into_inner();
        assert_eq!(answer.status(), IngestStatus::Accepted);
        accepted.push(answer.event_id);
    }

    let grpc = serving.endpoint.strip_prefix("http://").unwrap().to_owned();
    let webhook = serving.webhook.clone().expect("it listens for webhooks");
    let ops = serving.ops.clone().expect("it listens for operators");
    let mut stuck = Vec::new();
    for address in [&grpc, &webhook, &ops] {
        stuck.push(says(address, "").await);
    }
    stuck.push(says(&grpc, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
    for address in [&webhook, &ops] {
        stuck.push(says(address, "POST /webhooks/gu1 HTTP/1.1\r\nhost: a\r\n").await);
        let half = "POST /webhooks/gu1 HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{";
        stuck.push(says(address, half).await);
        // One that is answered, and then kept.
        let mut idle = says(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answered = time::timeout(PATIENCE, idle.read(&mut [0; 1024])).await;
        assert!(answered.expect("an answer in time").expect("no error") > 0);
        stuck.push(idle);
    }
    let reading = stuck_subscriber(serving.endpoint.clone()).await;
    let (sender, receiver) = requests::<IngestStreamRequest>();
    let answers = client.ingest_stream(receiver).await.unwrap().into_inner();
    let mut health = watch_health(
        &Endpoint::from_shared(serving.endpoint.clone())
            .unwrap()
            .connect_lazy(),
    )
    .await;
    assert_eq!(next_health(&mut health).await, ServingStatus::Serving);

    let (status, took) = end(serving, "-TERM").await;
    assert!(status.success(), "{status}");
    assert!(took >= GRACE, "nothing was stuck: {took:?}");
    assert!(took < GRACE + Duration::from_secs(8), "{took:?}");
    drop((stuck, reading, sender, answers, health));

    let again = place.serve();
    let mut stream = again
        .client()
        .await
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    for event_id in accepted {
        assert_eq!(next_event(&mut stream).await.event_id, event_id);
    }
}

#[tokio::test]
async fn without_clients_the_process_ends_at_once() {
    let place = Place::new();
    place.listen_for_http();
    let (status, took) = end(place.serve(), "-TERM").await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_start_that_hangs_can_be_ended() {
    let place = Place::new();
    let pipe = place.path("audit");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    place.configure(&format!("[audit]\npath = {pipe:?}\n"));
    let mut process = verdict()
        .args(["serve", "--config"])
        .arg(place.path("verdict.toml"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its log is open, and it waits for somebody to read the pipe.
    let is_open = async {
        while !place.path("log/index").exists() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, is_open).await.expect("it starts");
    let pid = Pid::from_child(&process);
    kill_process(pid, Signal::TERM).unwrap();
    time::sleep(Duration::from_millis(500)).await;
    assert_eq!(process.try_wait().unwrap(), None, "it has not hung");
    kill_process(pid, Signal::TERM).unwrap();
    let ended = task::spawn_blocking(move || process.wait().unwrap());
    let status = time::timeout(PATIENCE, ended).await.expect("it ends");
    assert_eq!(status.unwrap().code(), Some(1));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    place.configure_server("drain_delay_seconds = 3600");
    let serving = place.serve();
    let channel = Endpoint::from_shared(serving.endpoint.clone()).unwrap();
    let mut health = watch_health(&channel.connect_lazy()).await;
    assert_eq!(next_health(&mut health).await, ServingStatus::Serving);
    serving.signal("-TERM");
    assert_eq!(next_health(&mut health).await, ServingStatus::NotServing);
    let (status, took) = end(serving, "-INT").await;
    assert_eq!(status.code(), Some(1));
    assert!(took < Duration::from_secs(5), "{took:?}");
}
