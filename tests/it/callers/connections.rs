//! Connections, and for whom they are kept.

use futures_util::future;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{self, Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use verdict::proto::{ListSourcesRequest, admin_service_client::AdminServiceClient};

use super::{
    House, by,
    limits::{is_overloaded, two_callers},
};
use crate::support::{PATIENCE, connect};

/// Sends what every client sends first, and waits for the end.
async fn silent(url: &str) -> Duration {
    let (_, address) = url.split_once("://").expect("a URL");
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let beginning = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    connection.write_all(beginning).await.expect("taken");
    let begin = Instant::now();
    let mut ignored = Vec::new();
    let end = time::timeout(PATIENCE, connection.read_to_end(&mut ignored));
    end.await.expect("an end in time").expect("an orderly end");
    begin.elapsed()
}

#[tokio::test]
async fn a_connection_on_which_nobody_known_calls_is_closed_and_one_that_asks_for_health_is_not() {
    let house = House::open_with(&two_callers(), |server| {
        server.call_timeout_seconds = 2;
    })
    .await;
    let known = connect(&house.url).await;
    let mut admin = AdminServiceClient::new(known);
    let listed = admin.list_sources(by("a", ListSourcesRequest {})).await;
    listed.expect("a list");
    let mut health = HealthClient::new(over(&house.url).await);
    let healthy = async {
        for _ in 0..12 {
            let check = health.check(HealthCheckRequest::default()).await;
            check.expect("health");
            time::sleep(Duration::from_millis(500)).await;
        }
    };
    let (took, ()) = future::join(silent(&house.url), healthy).await;
    assert!(
        took > Duration::from_millis(1900) && took < Duration::from_secs(5),
        "{took:?}"
    );
    // Nothing more was asked for a while.
    time::sleep(Duration::from_secs(5)).await;
    let check = health.check(HealthCheckRequest::default()).await;
    check.expect_err("the connection has gone");
    house.close().await;
}

/// A client of one connection, which it does not open anew.
async fn over(url: &str) -> Channel {
    let (_, address) = url.split_once("://").expect("a URL");
    let connection = TcpStream::connect(address).await.expect("a connection");
    let mut connection = Some(TokioIo::new(connection));
    let connector = tower::service_fn(move |_| {
        let connection = connection.take();
        async { connection.ok_or_else(|| std::io::Error::other("there is one only")) }
    });
    let endpoint = Endpoint::from_static("http://verdict");
    let channel = endpoint.connect_with_connector(connector).await;
    channel.expect("a connection")
}

#[tokio::test]
async fn a_caller_has_a_share_of_the_connections() {
    let house = House::open_with(&two_callers(), |server| {
        server.max_connections = 8;
    })
    .await;
    let call = async |channel: &Channel, token: &str| {
        let mut admin = AdminServiceClient::new(channel.clone());
        admin.list_sources(by(token, ListSourcesRequest {})).await
    };
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(connect(&house.url).await);
    }
    call(&connections[0], "a").await.expect("the first of a");
    call(&connections[1], "a").await.expect("the second of a");
    for _ in 0..2 {
        assert!(is_overloaded(call(&connections[2], "a").await));
    }
    call(&connections[0], "b")
        .await
        .expect("the connection of a");
    call(&connections[2], "b").await.expect("the first of b");
    // It is not given to a when a calls on it.
    call(&connections[2], "a")
        .await
        .expect("the connection of b");
    drop(connections.remove(0));
    let another = connect(&house.url).await;
    let back = async {
        while call(&another, "a").await.is_err() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, back).await.expect("room for a");
    house.close().await;
}
