//! `verdict normalize`

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{
    CliError, ConfigArg,
    output::{self, Format},
    send,
};
use crate::{
    config::{DEFAULT_ACCOUNT, DEFAULT_MAX_JSON_DEPTH},
    event, http_file, ingest,
    keyring::{Keyring, Keys},
    proto::Environment,
    provider::{self, ALLOW_PLAINTEXT, Headers, Normalized, Provider, RawWebhook, VerifiedWebhook},
    source::{Counts, Source},
};

/// Shows the event that a webhook becomes, offline. The signature is not checked, and nothing is stored.
///
/// With --config (or VERDICT_CONFIG) the source must be configured there, and its decryption keys and environment are
/// used. Without, a body must not be encrypted.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The body of a webhook, or a request in a file that ends in .http.
    file: PathBuf,

    /// The provider.
    #[arg(long)]
    provider: String,

    /// The account at the provider.
    #[arg(long, default_value = DEFAULT_ACCOUNT)]
    account: String,

    /// The signature scheme, where a provider's payloads differ by it. The default is the source's first one.
    #[arg(long)]
    scheme: Option<String>,

    /// How to print. The default is indented JSON on a terminal and a JSON line in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let mut source = match args.config.config {
        Some(_) => args.config.source(&args.provider, &args.account)?,
        None => offline(&args)?,
    };
    // Here nobody is to be fooled.
    source.options.insert(ALLOW_PLAINTEXT.to_owned());
    let webhook = webhook(&args, &source)?;
    let quarantined = |error: &dyn std::fmt::Display| {
        CliError::Quarantined(format!("would be quarantined: {error}"))
    };
    let webhook = if source.is_encrypted(&webhook) {
        let content = source
            .decrypt(webhook.content(), jiff::Timestamp::UNIX_EPOCH)
            .map_err(|error| quarantined(&error))?;
        webhook.with_decrypted(content)
    } else {
        webhook
    };
    match source.normalize(&webhook) {
        Err(error) => Err(quarantined(&error)),
        Ok(Normalized::Ignored) => {
            anstream::eprintln!("known, but not about verification: would be ignored");
            Ok(())
        }
        Ok(Normalized::Event(normalized)) => {
            let id = event::event_id(&args.provider, &args.account, &normalized.key);
            let event = ingest::describe(&source, &webhook, id, normalized.event);
            output::print(match Format::or_detect(args.format) {
                Format::Table => output::pretty_json(&event)?,
                Format::Json => output::json(&event)?,
            });
            Ok(())
        }
    }
}

fn find(name: &str) -> Result<&'static dyn Provider, CliError> {
    provider::find(name).ok_or_else(|| CliError::Usage(format!("unknown provider {name}")))
}

/// A source that nothing is configured for.
fn offline(args: &Args) -> Result<Source, CliError> {
    let provider = find(&args.provider)?;
    Ok(Source {
        provider,
        account: args.account.clone(),
        environment: Environment::Unspecified,
        schemes: provider.schemes().iter().collect(),
        keyring: Keyring::from(Keys::default()),
        tolerance: Duration::ZERO,
        keep_unverified: false,
        allowed_ips: Vec::new(),
        max_json_depth: DEFAULT_MAX_JSON_DEPTH,
        options: BTreeSet::new(),
        counts: Counts::default(),
    })
}

/// The delivery, taken for genuine.
fn webhook(args: &Args, source: &Source) -> Result<VerifiedWebhook, CliError> {
    let file = send::read(&args.file)?;
    let raw = if send::is_request(&args.file) {
        http_file::parse(&file).map_err(|error| CliError::file(&args.file, error))?
    } else {
        RawWebhook {
            payload: file,
            headers: Headers::default(),
        }
    };
    let wanted = |name: &str| args.scheme.as_deref().is_none_or(|scheme| scheme == name);
    let mut schemes = source.schemes.iter();
    let scheme = schemes.find(|scheme| wanted(scheme.name)).ok_or_else(|| {
        let known: Vec<&str> = source.schemes.iter().map(|scheme| scheme.name).collect();
        CliError::Usage(format!(
            "unknown scheme; choose one of {}",
            known.join(", ")
        ))
    })?;
    VerifiedWebhook::assume_verified(raw, scheme, String::new()).map_err(CliError::failed)
}
