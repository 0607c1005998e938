//! Connections: how many, how long, and what becomes of those whose peer does not play along.

use std::{fs, time::Duration};

use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};
use verdict::{
    config::ServerConfig,
    proto::{
        SubscribeMessage, SubscribeRequest, subscribe_request::Start,
        verdict_service_client::VerdictServiceClient,
    },
};

use crate::{
    pki::{Authority, Clients, tls_config},
    support::{
        PATIENCE, Server, append, connect, decode, from_earliest, gu1_body, gu1_request,
        memory_log, next, next_event, reason, server_config,
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Settings that change nothing, as a frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn server(config: ServerConfig) -> Server {
    Server::start_with(config, memory_log()).await
}

/// A connection of which nobody knows what it will send.
async fn raw(server: &Server) -> TcpStream {
    let (_, address) = server.url.split_once("://").expect("a URL");
    TcpStream::connect(address).await.expect("a connection")
}

/// How long it takes until the server closes a connection.
async fn closed(connection: &mut (impl AsyncRead + Unpin)) -> Duration {
    let begun = time::Instant::now();
    let mut ignored = Vec::new();
    let end = time::timeout(PATIENCE, connection.read_to_end(&mut ignored));
    let _eof_or_reset = end.await.expect("the server closes the connection");
    begun.elapsed()
}

#[tokio::test]
async fn who_says_nothing_is_closed() {
    let server = server(ServerConfig {
        handshake_timeout_seconds: 1,
        ..server_config()
    })
    .await;
    for beginning in [&b""[..], b"P", &PREFACE[..23]] {
        let mut silent = raw(&server).await;
        silent.write_all(beginning).await.unwrap();
        let took = closed(&mut silent).await;
        assert!(took > Duration::from_millis(900), "{took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    server.accept("1").await;
}

#[tokio::test]
async fn who_says_nothing_to_tls_is_closed() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("tests");
    authority.server().write(directory.path(), "tls");
    fs::write(directory.path().join("ca.crt"), authority.pem()).unwrap();
    let config = ServerConfig {
        handshake_timeout_seconds: 1,
        ..tls_config(directory.path(), Clients::None)
    };
    let server = Server::start_tls(config, authority.trusted()).await;
    // The beginning of a handshake: a record of 512 bytes, of which few come.
    for beginning in [&b""[..], &[22, 3, 1, 2, 0, 1]] {
        let mut silent = raw(&server).await;
        silent.write_all(beginning).await.unwrap();
        let took = closed(&mut silent).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
    // A whole handshake, and nothing then.
    let mut shaken = authority.handshake(raw(&server).await).await;
    let took = closed(&mut shaken).await;
    assert!(took > Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    server.accept("1").await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_go_on() {
    let server = server(ServerConfig {
        max_connections: 3,
        ..server_config()
    })
    .await;
    // The server's own client is the first.
    let second = connect(&server.url).await;
    let third = connect(&server.url).await;
    let mut stream = VerdictServiceClient::new(second)
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    let mut client = VerdictServiceClient::new(third.clone());
    client.ingest(gu1_request(gu1_body("1"))).await.unwrap();
    for _ in 0..3 {
        let mut fourth = raw(&server).await;
        let _closed_already = fourth.write_all(PREFACE).await;
        let took = closed(&mut fourth).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    server.accept("2").await;
    next_event(&mut stream).await;
    next_event(&mut stream).await;
    // As soon as one goes there is room.
    drop((client, third));
    time::timeout(PATIENCE, async {
        loop {
            let mut client = VerdictServiceClient::new(connect(&server.url).await);
            match client.ingest(gu1_request(gu1_body("3"))).await {
                Ok(_) => break,
                Err(_) => time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
    .expect("room for another");
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_nobody_out() {
    const SILENT: usize = 1500;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let server = server(ServerConfig {
        max_connections: 2,
        handshake_timeout_seconds: 600,
        ..server_config()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(raw(&server).await);
    }
    // The client and the server use one connection each.
    let welcome = time::timeout(PATIENCE, async {
        let mut client = VerdictServiceClient::new(connect(&server.url).await);
        client.ingest(gu1_request(gu1_body("1"))).await.unwrap();
    });
    welcome.await.expect("an answer");
    // The oldest of them has made room; the newest waits.
    closed(&mut silent[0]).await;
    let mut byte = [0];
    let newest = silent.last_mut().unwrap().read(&mut byte);
    time::timeout(Duration::from_millis(100), newest)
        .await
        .expect_err("it is opening still");
}

#[tokio::test]
async fn a_flood_of_connections_without_calls_keeps_nobody_out_and_nobody_known_goes() {
    const FLOOD: usize = 40;
    let server = server(ServerConfig {
        max_connections: 8,
        ..server_config()
    })
    .await;
    // Two connections on which there were calls.
    server.accept("1").await;
    let mut client = VerdictServiceClient::new(connect(&server.url).await);
    let mut stream = client
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    next_event(&mut stream).await;
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        let mut silent = raw(&server).await;
        let _closed_already = silent.write_all(&[PREFACE, SETTINGS].concat()).await;
        flood.push(silent);
    }
    time::sleep(Duration::from_millis(1500)).await;

    // Each that comes takes the place of the oldest that is silent, and of none that has called.
    let mut welcome = Vec::new();
    for id in 2..8 {
        let mut client = VerdictServiceClient::new(connect(&server.url).await);
        let answer = client.ingest(gu1_request(gu1_body(&id.to_string()))).await;
        answer.unwrap_or_else(|refused| panic!("{id}: {refused}"));
        next_event(&mut stream).await;
        welcome.push(client);
    }
    for silent in &mut flood {
        closed(silent).await;
    }
    server.accept("8").await;
    next_event(&mut stream).await;
    for client in &mut welcome {
        client.ingest(gu1_request(gu1_body("1"))).await.unwrap();
    }
    // Now all are known, and one more is closed, however long it waits.
    time::sleep(Duration::from_millis(1500)).await;
    let mut ninth = raw(&server).await;
    let _closed_already = ninth.write_all(PREFACE).await;
    let took = closed(&mut ninth).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_does_not_keep_a_connection() {
    let server = server(ServerConfig {
        keepalive_interval_seconds: 1,
        keepalive_timeout_seconds: 1,
        ..server_config()
    })
    .await;
    let (mut reader, mut writer) = raw(&server).await.into_split();
    writer.write_all(PREFACE).await.unwrap();
    writer.write_all(SETTINGS).await.unwrap();
    // The head of a HEADERS frame of 10,000 bytes, which come one by one.
    let head = [0, 0x27, 0x10, 1, 4, 0, 0, 0, 1];
    writer.write_all(&head).await.unwrap();
    let trickle = tokio::spawn(async move {
        while writer.write_all(&[0x82]).await.is_ok() {
            time::sleep(Duration::from_millis(50)).await;
        }
    });
    let took = closed(&mut reader).await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    time::timeout(PATIENCE, trickle).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_takes_nothing_is_closed() {
    const EVENTS: u128 = 400;
    let log = memory_log();
    for number in 0..EVENTS {
        append(&log, number, 64 << 10).await;
    }
    let config = ServerConfig {
        max_subscriptions: 1,
        write_timeout_seconds: 1,
        // So that it is not for want of an answer to a ping.
        keepalive_interval_seconds: 3600,
        ..server_config()
    };
    let server = Server::start_with(config, log).await;
    // With windows that HTTP/2 never closes.
    let mut connection = h2_subscription(raw(&server).await).await;
    let refused = server.client.clone().subscribe(from_earliest()).await;
    assert_eq!(reason(&refused.unwrap_err()), "OVERLOADED");
    let mut stream = time::timeout(PATIENCE, async {
        loop {
            match server.client.clone().subscribe(from_earliest()).await {
                Ok(stream) => break stream.into_inner(),
                Err(_) => time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
    .expect("the place of a subscription that nobody reads");
    for _ in 0..EVENTS {
        next_event(&mut stream).await;
    }
    closed(&mut connection).await;
}

/// Sends a subscription from the earliest event by hand, and reads none of what comes.
async fn h2_subscription(mut connection: TcpStream) -> TcpStream {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
    let window_update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0];
    // :method POST, :scheme http, then :authority, :path, content-type and te as literals with their names.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (":authority", "localhost"),
        (":path", "/verdict.v1.VerdictService/Subscribe"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).expect("short"));
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let length = u8::try_from(headers.len()).expect("short");
    let message = prost::Message::encode_to_vec(&from_earliest());
    let mut body = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
    body.extend_from_slice(&message);
    let frames = [
        PREFACE,
        &settings,
        &window_update,
        &[0, 0, length, 1, 4, 0, 0, 0, 1],
        &headers,
        &[
            0,
            0,
            u8::try_from(body.len()).expect("short"),
            0,
            1,
            0,
            0,
            0,
            1,
        ],
        &body,
    ];
    connection.write_all(&frames.concat()).await.unwrap();
    // The answer has begun.
    let mut byte = [0];
    connection.read_exact(&mut byte).await.unwrap();
    time::sleep(Duration::from_millis(300)).await;
    connection
}

#[tokio::test]
async fn a_stream_is_asked_to_leave_an_old_connection_and_resumes_without_a_gap() {
    let server = server(ServerConfig {
        max_connection_age_seconds: 1,
        max_connection_age_grace_seconds: 1,
        ..server_config()
    })
    .await;
    let log = std::sync::Arc::clone(&server.log);
    const EVENTS: u128 = 300;
    let appending = tokio::spawn(async move {
        for number in 1..=EVENTS {
            append(&log, number, 10).await;
            time::sleep(Duration::from_millis(10)).await;
        }
    });
    let mut request = from_earliest();
    let (mut seen, mut connections) = (Vec::new(), 0);
    while seen.len() < EVENTS as usize {
        // One client for all: it changes its connection when it is asked to.
        let mut stream = server.subscribe(request.clone()).await;
        connections += 1;
        let (mut cursor, mut drained) = (None, false);
        let ended = loop {
            match time::timeout(PATIENCE, stream.message()).await.unwrap() {
                Ok(response) => {
                    let response = response.expect("no end without a reason");
                    cursor = Some(response.cursor);
                    match response.message {
                        Some(SubscribeMessage::Event(event)) => seen.push(decode(event).event_id),
                        Some(SubscribeMessage::Draining(_)) => drained = true,
                        _ => {}
                    }
                }
                Err(status) => break status,
            }
        };
        assert_eq!(reason(&ended), "DRAINING");
        assert!(drained);
        request = SubscribeRequest {
            start: cursor.map(Start::AfterCursor),
            ..SubscribeRequest::default()
        };
        assert!(connections < 20, "{} events", seen.len());
    }
    appending.await.unwrap();
    let expected = (1..=EVENTS).map(|number| uuid::Uuid::from_u128(number).to_string());
    assert_eq!(seen, expected.collect::<Vec<_>>());
    assert!(connections >= 3, "{connections}");
}

#[tokio::test]
async fn calls_go_on_across_the_age_of_their_connections() {
    let server = server(ServerConfig {
        max_connection_age_seconds: 1,
        ..server_config()
    })
    .await;
    let mut again = 0;
    for id in 0..200 {
        let request = gu1_request(gu1_body(&id.to_string()));
        // tonic's client fails a call that it hands to a connection in the moment in which that closes; others send it
        // again by themselves.
        if server.ingest(request.clone()).await.is_err() {
            again += 1;
            server.ingest(request).await.unwrap();
        }
        time::sleep(Duration::from_millis(15)).await;
    }
    assert!(again <= 5, "{again}");
    assert_eq!(server.log.tail().end().0, 200);
}

#[tokio::test]
async fn a_connection_that_does_not_go_is_closed_after_its_grace() {
    let server = server(ServerConfig {
        max_connection_age_seconds: 1,
        max_connection_age_grace_seconds: 1,
        // So that nothing else ends it.
        keepalive_interval_seconds: 3600,
        write_timeout_seconds: 3600,
        ..server_config()
    })
    .await;
    for number in 0..100 {
        append(&server.log, number, 1 << 10).await;
    }
    // Its window is full, so it never comes to "draining".
    let endpoint = tonic::transport::Endpoint::from_shared(server.url.clone())
        .unwrap()
        .initial_stream_window_size(1 << 10);
    let mut client = VerdictServiceClient::new(endpoint.connect().await.unwrap());
    let begun = time::Instant::now();
    let mut stuck = client
        .subscribe(from_earliest())
        .await
        .unwrap()
        .into_inner();
    next(&mut stuck).await;
    time::sleep(Duration::from_secs(3)).await;
    let end = time::timeout(PATIENCE, async {
        while let Ok(Some(_)) = stuck.message().await {}
    });
    end.await.expect("an end");
    assert!(begun.elapsed() < Duration::from_secs(20));
    server.accept("1").await;
}
