//! `verdict demo`

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use super::{
    CliError,
    client::failure,
    output,
    send::{request, sign},
};
use crate::{
    config::{self, DEFAULT_MAX_JSON_DEPTH, Variables},
    keyring::{Keyring, Keys},
    proto::{
        Earliest, Environment, IngestResponse, IngestStatus, SubscribeMessage, SubscribeRequest,
        VerificationEvent, subscribe_request::Start, verdict_service_client::VerdictServiceClient,
    },
    provider::{PROVIDERS, RawWebhook, Sample, jwe::DecryptionKey, signature::Secret},
    source::{Counts, Source},
    telemetry::Telemetry,
    transport::{self, Access, Listeners, Service},
};

type Client = VerdictServiceClient<Channel>;

/// Runs the whole service on loopback and shows what it does.
///
/// Starts the real server with a log in a temporary directory, sends samples of every provider, signed as the provider
/// signs them, and prints the stream of events while it arrives. One sample is sent twice, one with a bad signature, and
/// one with an event type that does not exist.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(Args {}: Args) -> Result<(), CliError> {
    let directory = TempDir::new().map_err(CliError::failed)?;
    let mut config = config::parse("", &Variables::new())?;
    config.log.path = directory.path().join("log");
    let log = transport::open_log(&config.log).map_err(CliError::failed)?;
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(CliError::failed)?;
    let address = listener.local_addr().map_err(CliError::failed)?;
    let sources = sources()?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(transport::run(
        Service {
            config: config.server,
            sources: sources.clone(),
            log,
            access: Access::anyone(),
            telemetry: Telemetry::default(),
        },
        Listeners::grpc(listener),
        stop.clone().cancelled_owned(),
    ));
    anstream::eprintln!(
        "the service runs on {address}, with its log in {}",
        directory.path().display()
    );

    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(CliError::failed)?;
    let channel = endpoint.connect().await.map_err(CliError::failed)?;
    let client = VerdictServiceClient::new(channel);
    let (printed, mut seen) = watch::channel(0);
    let printer = tokio::spawn(print_stream(client.clone(), printed));
    let tally = send_all(client, &sources).await?;
    if seen
        .wait_for(|printed| *printed >= tally.accepted)
        .await
        .is_err()
    {
        printer.await.map_err(CliError::failed)??;
        return Err(CliError::failed("the stream ended before its last event"));
    }
    output::print(tally.line());

    // The printer ends with the stream, and the stream with the server.
    stop.cancel();
    server
        .await
        .map_err(CliError::failed)?
        .map_err(CliError::failed)
}

/// How the deliveries ended.
#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    duplicate: usize,
    quarantined: usize,
    ignored: usize,
    refused: Vec<String>,
}

impl Tally {
    fn add(&mut self, response: &IngestResponse) {
        match response.status() {
            IngestStatus::Accepted => self.accepted += 1,
            IngestStatus::Duplicate => self.duplicate += 1,
            IngestStatus::Quarantined => self.quarantined += 1,
            IngestStatus::Ignored => self.ignored += 1,
            IngestStatus::Unspecified => {}
        }
    }

    fn line(&self) -> String {
        format!(
            "{} accepted, {} duplicate, {} quarantined, {} ignored, {} refused ({})",
            self.accepted,
            self.duplicate,
            self.quarantined,
            self.ignored,
            self.refused.len(),
            self.refused.join(", ")
        )
    }
}

/// Prints events as they arrive, and tells how many there were.
async fn print_stream(mut client: Client, printed: watch::Sender<usize>) -> Result<(), CliError> {
    let subscribe = SubscribeRequest {
        start: Some(Start::Earliest(Earliest {})),
        ..Default::default()
    };
    let stream = client.subscribe(subscribe).await;
    let mut stream = stream.map_err(|status| failure(&status))?.into_inner();
    output::print(output::event_head());
    while let Some(response) = stream.message().await.map_err(|status| failure(&status))? {
        if let Some(SubscribeMessage::Event(event)) = response.message {
            let event = VerificationEvent::decode(event).map_err(CliError::failed)?;
            output::print(output::event_row(&event));
            printed.send_modify(|printed| *printed += 1);
        }
    }
    Ok(())
}

/// A source for each scheme of each provider, with an account of its own, so that all schemes are shown.
fn sources() -> Result<Vec<Arc<Source>>, CliError> {
    let schemes = PROVIDERS.iter().flat_map(|provider| {
        provider
            .schemes()
            .iter()
            .map(move |scheme| (*provider, scheme))
    });
    schemes
        .map(|(provider, scheme)| {
            let key = || DecryptionKey::generate("demo-key".to_owned()).map_err(CliError::failed);
            Ok(Arc::new(Source {
                provider,
                account: scheme.name.to_owned(),
                environment: Environment::Sandbox,
                schemes: vec![scheme],
                keyring: Keyring::from(Keys {
                    secrets: vec![Secret::new("demo".to_owned(), b"not a secret".to_vec())],
                    decryption_keys: match provider.encrypted() {
                        true => vec![key()?],
                        false => Vec::new(),
                    },
                }),
                tolerance: Duration::from_secs(300),
                keep_unverified: false,
                allowed_ips: Vec::new(),
                max_json_depth: DEFAULT_MAX_JSON_DEPTH,
                options: BTreeSet::new(),
                counts: Counts::default(),
            }))
        })
        .collect()
}

/// Sends what the demo shows: every sample, and three deliveries that become no new event.
async fn send_all(client: Client, sources: &[Arc<Source>]) -> Result<Tally, CliError> {
    let mut sender = Sender {
        client,
        tally: Tally::default(),
    };
    for source in sources {
        let scheme = source.schemes.first().map(|scheme| scheme.name);
        for sample in source.provider.samples() {
            if Some(sample.scheme) == scheme {
                let body = Bytes::from_static(sample.body.as_bytes());
                sender.send(source, sign(source, body, None)?).await?;
            }
        }
    }

    let gu1 = sources
        .iter()
        .find(|source| source.provider.name() == "gu1");
    let gu1 = gu1.ok_or_else(|| CliError::failed("gu1 is not a provider"))?;
    let sample = |sample: &Sample| Bytes::from_static(sample.body.as_bytes());
    let body = gu1
        .provider
        .samples()
        .first()
        .map(sample)
        .unwrap_or_default();
    let redelivered = sign(gu1, body, None)?;
    sender.send(gu1, redelivered.clone()).await?;

    let changed = [&redelivered.payload[..], b" "].concat().into();
    let forged = RawWebhook {
        payload: changed,
        ..redelivered
    };
    sender.send(gu1, forged).await?;

    let unknown = r#"{"event":"kyc.validation_teleported","timestamp":"2026-05-04T12:02:00Z","payload":{"id":"9d100000-0000-4000-8000-000000000003","status":"teleported"}}"#;
    let unknown = sign(gu1, Bytes::from_static(unknown.as_bytes()), None)?;
    sender.send(gu1, unknown).await?;
    Ok(sender.tally)
}

/// Sends webhooks and counts how they end.
struct Sender {
    client: Client,
    tally: Tally,
}

impl Sender {
    async fn send(&mut self, source: &Source, webhook: RawWebhook) -> Result<(), CliError> {
        let request = request(source.provider.name(), &source.account, webhook);
        match self.client.ingest(request).await {
            Ok(response) => self.tally.add(response.get_ref()),
            Err(status) => {
                let Some(info) = status.get_details_error_info() else {
                    return Err(failure(&status));
                };
                self.tally.refused.push(info.reason);
            }
        }
        Ok(())
    }
}
