//! The clients of the load. They send bytes that were encoded before and do not decode what they are answered, so that they
//! cost the same whatever the service does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, future, stream};
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use verdict::proto::IngestStatus;

pub(crate) const ECHO: &str = "/bench.Nothing/Echo";
pub(crate) const ECHO_STREAM: &str = "/bench.Nothing/EchoStream";
pub(crate) const RAW_STREAM: &str = "/bench.Nothing/Raw";
pub(crate) const INGEST: &str = "/verdict.v1.VerdictService/Ingest";
pub(crate) const INGEST_STREAM: &str = "/verdict.v1.VerdictService/IngestStream";
pub(crate) const SUBSCRIBE: &str = "/verdict.v1.VerdictService/Subscribe";

/// Over how many connections the load comes.
pub(crate) const CONNECTIONS: usize = 4;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
pub(crate) struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

pub(crate) async fn connect(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    let endpoint = endpoint
        .initial_connection_window_size(8 << 20)
        .initial_stream_window_size(1 << 20);
    endpoint.connect().await.expect("a connection")
}

pub(crate) async fn connections(url: &str) -> Vec<Channel> {
    future::join_all((0..CONNECTIONS).map(|_| connect(url))).await
}

/// What one measurement has found.
pub(crate) struct Measured {
    pub(crate) count: u64,
    pub(crate) took: Duration,
    /// Of each answer, in microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("good bounds")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

async fn ready(channel: &Channel) -> Grpc<Channel> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    grpc
}

/// That a webhook has become an event: no other answer is worth a measurement.
fn check(path: &str, answer: &[u8]) {
    /// The status of an `IngestResponse`.
    #[derive(Clone, PartialEq, Message)]
    struct One {
        #[prost(enumeration = "IngestStatus", tag = "1")]
        status: i32,
    }
    /// The same in an `IngestStreamResponse`.
    #[derive(Clone, PartialEq, Message)]
    struct OfStream {
        #[prost(message, optional, tag = "2")]
        response: Option<One>,
    }
    let one = match path {
        INGEST => One::decode(answer).ok(),
        INGEST_STREAM => OfStream::decode(answer).ok().and_then(|of| of.response),
        _ => return,
    };
    let status = one.map(|one| one.status());
    assert_eq!(status, Some(IngestStatus::Accepted));
}

/// One call, of which the answer must be good.
pub(crate) async fn call(channel: &Channel, path: &'static str, message: Bytes) -> Bytes {
    let mut grpc = ready(channel).await;
    let request = tonic::Request::new(message);
    let answer = grpc
        .unary(request, PathAndQuery::from_static(path), RawCodec)
        .await;
    let answer = answer.expect("a good answer").into_inner();
    check(path, &answer);
    answer
}

/// Sends all messages by unary calls, of which so many are in flight.
pub(crate) async fn unary(
    url: &str,
    path: &'static str,
    messages: Vec<Bytes>,
    in_flight: usize,
) -> Measured {
    let channels = connections(url).await;
    let messages = Arc::new(messages);
    let next = Arc::new(AtomicUsize::new(0));
    let count = messages.len() as u64;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let channel = channels[task % channels.len()].clone();
        let (messages, next) = (Arc::clone(&messages), Arc::clone(&next));
        tasks.spawn(async move {
            let mut latency = histogram();
            while let Some(message) = messages.get(next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                call(&channel, path, message.clone()).await;
                latency.saturating_record(micros(begun.elapsed()));
            }
            latency
        });
    }
    collect(tasks, count, begun).await
}

/// Sends all messages over one stream for each connection, of which so many wait for an answer.
pub(crate) async fn streams(
    url: &str,
    path: &'static str,
    messages: Vec<Bytes>,
    in_flight: usize,
) -> Measured {
    let channels = connections(url).await;
    let count = messages.len() as u64;
    let mut shares: Vec<Vec<Bytes>> = vec![Vec::new(); channels.len()];
    for (index, message) in messages.into_iter().enumerate() {
        shares[index % channels.len()].push(message);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for (channel, share) in channels.into_iter().zip(shares) {
        let ahead = in_flight / CONNECTIONS;
        tasks.spawn(async move { one_stream(channel, path, share, ahead).await });
    }
    collect(tasks, count, begun).await
}

async fn one_stream(
    channel: Channel,
    path: &'static str,
    messages: Vec<Bytes>,
    ahead: usize,
) -> Histogram<u64> {
    let room = Arc::new(Semaphore::new(ahead));
    let (sent, mut times) = mpsc::unbounded_channel();
    let (count, mut latency) = (messages.len(), histogram());
    let mut answers = open(&channel, path, paced(messages, Arc::clone(&room), sent)).await;
    for index in 0..count {
        let answer = answers.message().await.expect("no error");
        check(path, &answer.expect("as many answers as messages"));
        room.add_permits(1);
        if index.is_multiple_of(SAMPLED) {
            let sent: Instant = times.recv().await.expect("sent before it was answered");
            latency.saturating_record(micros(sent.elapsed()));
        }
    }
    latency
}

/// Of how many messages of a stream one is timed: from when it is sent until as many answers have come.
const SAMPLED: usize = 64;

/// Messages that wait until there is room for them.
fn paced(
    messages: Vec<Bytes>,
    room: Arc<Semaphore>,
    sent: mpsc::UnboundedSender<Instant>,
) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(
        (messages.into_iter().enumerate(), room, sent),
        |(mut messages, room, sent)| async move {
            let (index, message) = messages.next()?;
            room.acquire().await.expect("it is never closed").forget();
            if index.is_multiple_of(SAMPLED) {
                let _ = sent.send(Instant::now());
            }
            Some((message, (messages, room, sent)))
        },
    )
}

async fn open(
    channel: &Channel,
    path: &'static str,
    messages: impl Stream<Item = Bytes> + Send + 'static,
) -> Streaming<Bytes> {
    let mut grpc = ready(channel).await;
    let path = PathAndQuery::from_static(path);
    let request = tonic::Request::new(messages);
    let answer = grpc.streaming(request, path, RawCodec).await;
    answer.expect("a stream").into_inner()
}

/// Opens a stream of messages from the server.
pub(crate) async fn subscribe(
    channel: &Channel,
    path: &'static str,
    request: Bytes,
) -> Streaming<Bytes> {
    let mut grpc = ready(channel).await;
    let path = PathAndQuery::from_static(path);
    let request = tonic::Request::new(request);
    let answer = grpc.server_streaming(request, path, RawCodec).await;
    answer.expect("a stream").into_inner()
}

/// Takes all messages of a stream.
pub(crate) async fn drain(mut stream: Streaming<Bytes>) -> u64 {
    let mut count = 0;
    while stream.message().await.expect("no error").is_some() {
        count += 1;
    }
    count
}

async fn collect(mut tasks: JoinSet<Histogram<u64>>, count: u64, begun: Instant) -> Measured {
    let mut latency = histogram();
    while let Some(one) = tasks.join_next().await {
        latency
            .add(one.expect("no panic"))
            .expect("the same bounds");
    }
    Measured {
        count,
        took: begun.elapsed(),
        latency,
    }
}
