//! `verdict send`

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    CliError, ConfigArg,
    client::{Connection, EndpointArg, failure},
    output::{self, Format},
};
use crate::{
    config::DEFAULT_ACCOUNT,
    http_file,
    proto::{
        GetEventRequest, Header, IngestRequest, IngestStatus,
        verdict_service_client::VerdictServiceClient,
    },
    provider::{RawWebhook, jwe},
    source::Source,
};

/// Signs a file as the provider would, and ingests it.
///
/// FILE is the body of a webhook: it is signed with the first secret of the source, and encrypted first if the provider
/// encrypts. A FILE that ends in .http holds a whole request and is sent as it is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The body of a webhook, or a request in a file that ends in .http.
    #[arg(required_unless_present = "sample")]
    file: Option<PathBuf>,

    /// Send a sample of the provider instead of a file.
    #[arg(long, conflicts_with = "file")]
    sample: bool,

    /// The provider.
    #[arg(long)]
    provider: String,

    /// The account at the provider.
    #[arg(long, default_value = DEFAULT_ACCOUNT)]
    account: String,

    /// Sign as of this time instead of now, for example 2026-05-28T20:26:40Z.
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,

    /// Print the signed request instead of sending it.
    #[arg(long)]
    dry_run: bool,

    /// Read the event back from the server, print it too, and fail if it is not there. Needs the scope subscribe as well.
    #[arg(long, conflicts_with = "dry_run")]
    read_back: bool,

    /// How to print the answer. The default is a line for people on a terminal and a JSON line in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    config: ConfigArg,

    #[command(flatten)]
    server: EndpointArg,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let webhook = webhook(&args)?;
    if args.dry_run {
        let request = http_file::write(&args.provider, &webhook);
        return io::stdout().write_all(&request).map_err(CliError::failed);
    }
    let mut client = VerdictServiceClient::new(args.server.connect().await?);
    let response = client
        .ingest(request(&args.provider, &args.account, webhook))
        .await
        .map_err(|status| failure(&status))?
        .into_inner();
    let status = response.status();
    let format = Format::or_detect(args.format);
    match format {
        Format::Json => {
            let json = output::json(&response)?;
            output::print(json);
        }
        Format::Table => {
            let status = output::short(status.as_str_name(), "INGEST_STATUS_");
            let id = format!("{}{}", response.event_id, response.quarantine_id);
            output::print(format!("{status} {}", output::plain(&id)));
        }
    }
    match status {
        IngestStatus::Quarantined => Err(CliError::Quarantined(
            "the webhook is genuine, but was not understood; it is in the quarantine".to_owned(),
        )),
        _ if args.read_back => read_back(&mut client, &args, response.event_id, format).await,
        _ => Ok(()),
    }
}

/// Reads the event that a webhook has become, and prints it.
async fn read_back(
    client: &mut VerdictServiceClient<Connection>,
    args: &Args,
    event_id: String,
    format: Format,
) -> Result<(), CliError> {
    if event_id.is_empty() {
        return Err(CliError::failed(
            "the webhook has become no event that could be read back",
        ));
    }
    let request = GetEventRequest {
        event_id: event_id.clone(),
        include_personal_data: false,
    };
    let response = client.get_event(request).await;
    let response = response.map_err(|status| failure(&status))?.into_inner();
    let event = response.event.as_ref().filter(|event| {
        let source = event.source.as_ref();
        event.event_id == event_id
            && source.is_some_and(|source| {
                source.provider == args.provider && source.account == args.account
            })
    });
    let event = event.ok_or_else(|| {
        CliError::failed(format!("what was read back is not the event {event_id}"))
    })?;
    output::print(match format {
        Format::Json => output::json(&response)?,
        Format::Table => output::event_row(event),
    });
    Ok(())
}

fn webhook(args: &Args) -> Result<RawWebhook, CliError> {
    if let Some(file) = &args.file
        && is_request(file)
    {
        return http_file::parse(&read(file)?).map_err(|error| CliError::file(file, error));
    }
    let source = args.config.source(&args.provider, &args.account)?;
    let body = match &args.file {
        Some(file) => read(file)?,
        None => sample(&source)?,
    };
    sign(&source, body, args.at)
}

/// Whether a file holds a whole request.
pub(super) fn is_request(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "http")
}

pub(super) fn read(file: &Path) -> Result<Bytes, CliError> {
    let bytes = fs::read(file).map_err(|error| CliError::file(file, error))?;
    Ok(bytes.into())
}

/// A sample that the source's first scheme signs.
fn sample(source: &Source) -> Result<Bytes, CliError> {
    let scheme = source.schemes.first().map(|scheme| scheme.name);
    let samples = source.provider.samples();
    samples
        .iter()
        .find(|sample| Some(sample.scheme) == scheme)
        .map(|sample| Bytes::from_static(sample.body.as_bytes()))
        .ok_or_else(|| CliError::Failed("the provider has no sample for this scheme".to_owned()))
}

/// Signs a body as the source's provider would, with its first scheme, secret and key; now, unless told when.
pub(super) fn sign(
    source: &Source,
    body: Bytes,
    at: Option<jiff::Timestamp>,
) -> Result<RawWebhook, CliError> {
    let keys = source.keys();
    let body = match keys.decryption_keys.first() {
        Some(key) => jwe::encrypt(&body, key).map_err(CliError::failed)?.into(),
        None => body,
    };
    let (Some(scheme), Some(secret)) = (source.schemes.first(), keys.secrets.first()) else {
        return Err(CliError::Failed("the source has no secret".to_owned()));
    };
    #[expect(clippy::disallowed_methods, reason = "the clock of the sender")]
    let now = at.unwrap_or_else(jiff::Timestamp::now);
    scheme.sign(body, secret, now).map_err(CliError::failed)
}

/// The request that ingests a webhook.
pub(super) fn request(provider: &str, account: &str, webhook: RawWebhook) -> IngestRequest {
    let headers = webhook.headers.iter();
    IngestRequest {
        provider: provider.to_owned(),
        account: account.to_owned(),
        headers: headers
            .map(|(name, value)| Header {
                name: name.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        payload: webhook.payload,
        ..Default::default()
    }
}
