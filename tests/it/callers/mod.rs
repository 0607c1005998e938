//! Callers: how they prove who they are, what they may do, and what is recorded of it.

mod audit;
mod configuration;
mod connections;
mod ending;
mod isolation;
mod issuer;
mod limits;
mod refused;
mod scopes;
mod tokens;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::Channel,
};
use verdict::{
    audit::Audit,
    caller::{Callers, Refused},
    config::{self, Loaded, ServerConfig, Variables},
    log::EventLog,
    proto::{
        DESCRIPTORS, admin_service_client::AdminServiceClient,
        verdict_service_client::VerdictServiceClient,
    },
    source::Source,
    telemetry::Telemetry,
    transport::{self, Access, Listeners, ServeError, Service},
};

use crate::support::{PATIENCE, connect, fixture_source, memory_log};

/// A caller with a token that is its name, and these grants: pairs of scopes and limits, as the configuration has them.
fn caller(name: &str, grants: &[(&str, &str)]) -> String {
    let hash =
        base16ct::lower::encode_string(&verdict::provider::signature::sha256(name.as_bytes()));
    let mut text = format!(
        "[[callers]]\nname = \"{name}\"\ntokens = [{{ id = \"{name}-token\", sha256 = \"{hash}\" }}]\n"
    );
    for (scopes, limits) in grants {
        let scopes: Vec<_> = scopes
            .split(' ')
            .map(|scope| format!("\"{scope}\""))
            .collect();
        let scopes = scopes.join(", ");
        text.push_str(&format!(
            "[[callers.grants]]\nscopes = [{scopes}]\n{limits}\n"
        ));
    }
    text
}

/// A configuration with these callers.
fn load(callers: &str) -> Loaded {
    let variables = Variables::from([("GU1_SECRET".to_owned(), "s".to_owned())]);
    let source =
        "[[sources]]\nprovider = \"gu1\"\nsecrets = [{ id = \"a\", env = \"GU1_SECRET\" }]\n";
    let config = config::parse(&format!("{callers}\n{source}"), &variables);
    let loaded = config.and_then(|config| config.check(&variables));
    loaded.expect("a good configuration")
}

/// Sources whose events nobody may mix up: two accounts of one provider, another provider, and one that signs its times.
fn sources() -> Vec<Source> {
    let other = Source {
        account: "other".to_owned(),
        ..fixture_source("gu1")
    };
    vec![
        fixture_source("gu1"),
        other,
        fixture_source("fyatu"),
        fixture_source("kayle"),
    ]
}

/// A server that asks its callers who they are.
struct House {
    channel: Channel,
    client: VerdictServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    callers: Arc<Callers>,
    log: Arc<dyn EventLog>,
    url: String,
    audit: PathBuf,
    _directory: TempDir,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
}

impl House {
    async fn open(callers: &str) -> Self {
        Self::open_with(callers, |_| {}).await
    }

    async fn open_with(callers: &str, change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::open_on(callers, memory_log(), change).await
    }

    async fn open_on(
        callers: &str,
        log: Arc<dyn EventLog>,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Self {
        let mut loaded = load(callers);
        change(&mut loaded.server);
        let directory = TempDir::new().expect("a directory");
        let audit = directory.path().join("audit.jsonl");
        let callers = Arc::new(loaded.callers);
        let access = Access {
            callers: Arc::clone(&callers),
            audit: Some(Audit::open(&audit).expect("an audit log")),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(transport::run(
            Service {
                config: loaded.server,
                sources: sources().into_iter().map(Arc::new).collect(),
                log: Arc::clone(&log),
                access,
                telemetry: Telemetry::default(),
            },
            Listeners::grpc(listener),
            stop.clone().cancelled_owned(),
        ));
        let channel = connect(&url).await;
        Self {
            client: VerdictServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel.clone()),
            channel,
            callers,
            log,
            url,
            audit,
            _directory: directory,
            stop,
            running,
        }
    }

    async fn close(self) {
        self.stop.cancel();
        let running = time::timeout(PATIENCE, self.running).await;
        let served = running.expect("the server stops").expect("no panic");
        served.expect("the server does not fail");
    }

    /// How often each reason has refused someone.
    fn refusals(&self) -> Vec<(Refused, u64)> {
        let counts = Refused::ALL.map(|reason| (reason, self.callers.refused(reason)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Calls an rpc by its path with any bytes and any metadata, and takes the answer to its end.
    async fn call(&self, path: &str, metadata: MetadataMap, body: Bytes) -> Result<(), Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.expect("a connection");
        let mut request = Request::new(tokio_stream::once(body));
        *request.metadata_mut() = metadata;
        let path = path.parse().expect("a path");
        let answer = grpc.streaming(request, path, BytesCodec).await?;
        let mut answer = answer.into_inner();
        // A stream that stays open has nothing to do with whether it was opened.
        while let Ok(message) = time::timeout(Duration::from_millis(50), answer.message()).await {
            if message?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// A request of the caller whose token this is.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = bearer(token);
    request
}

fn bearer(token: &str) -> MetadataMap {
    metadata(&[("authorization", &format!("Bearer {token}"))])
}

fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in pairs {
        metadata.append(*name, value.parse().expect("a value"));
    }
    metadata
}

/// The paths of all rpcs that verdict has of its own.
fn rpcs() -> Vec<String> {
    let services = DESCRIPTORS.services();
    let services = services.filter(|service| service.full_name().starts_with("verdict.v1."));
    let paths = services.flat_map(|service| {
        let name = service.full_name().to_owned();
        let methods: Vec<_> = service
            .methods()
            .map(|method| method.name().to_owned())
            .collect();
        methods
            .into_iter()
            .map(move |method| format!("/{name}/{method}"))
    });
    paths.collect()
}

/// Messages as they are.
#[derive(Clone, Copy, Debug)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
