//! Services that do nothing, on the same tonic: what the transport alone costs. They are a part of the benchmark and not of
//! the product.

use std::{
    convert::Infallible,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use tokio::net::TcpListener;
use tonic::{
    Status, Streaming,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::client::{ECHO, ECHO_STREAM, RAW_STREAM};

/// How large the messages of the raw stream are.
const RAW_BYTES: usize = 600;

/// Serves on a free port, which it prints, until it is killed.
pub(crate) async fn serve() {
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let listener = TcpListener::bind(address).await.expect("a free port");
    println!("{}", listener.local_addr().expect("an address"));
    io::stdout().flush().expect("somebody reads");
    Server::builder()
        .add_service(Nothing)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .expect("it goes on");
}

/// Byte strings, in and out: `google.protobuf.BytesValue`.
#[derive(Clone)]
struct Nothing;

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

fn grpc() -> Grpc<ProstCodec<Bytes, Bytes>> {
    Grpc::new(ProstCodec::default())
}

impl UnaryService<Bytes> for Nothing {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        Box::pin(async { Ok(tonic::Response::new(request.into_inner())) })
    }
}

impl StreamingService<Bytes> for Nothing {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Answer<Messages>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async { Ok(tonic::Response::new(request.into_inner().boxed())) })
    }
}

/// Sends as many messages as it is asked for, in eight bytes.
struct Raw;

impl ServerStreamingService<Bytes> for Raw {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Answer<Messages>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let wanted = request.into_inner();
        let wanted = wanted.as_ref().try_into().map_or(0, u64::from_be_bytes);
        let message = Bytes::from(vec![7; RAW_BYTES]);
        let messages = stream::repeat(message).map(Ok).take(wanted as usize);
        Box::pin(async { Ok(tonic::Response::new(messages.boxed())) })
    }
}

impl Service<Request<Body>> for Nothing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            let response = match request.uri().path() {
                ECHO => grpc().unary(Self, request).await,
                ECHO_STREAM => grpc().streaming(Self, request).await,
                RAW_STREAM => grpc().server_streaming(Raw, request).await,
                _ => Status::unimplemented("").into_http(),
            };
            Ok(response)
        })
    }
}

impl NamedService for Nothing {
    const NAME: &'static str = "bench.Nothing";
}
