//! Every fixture becomes what its snapshot says.
//!
//! A new case is a new file. Run the tests with `INSTA_UPDATE=always`, and read the snapshot that appears beside it as
//! carefully as code.

use std::{collections::BTreeSet, fs};

use verdict::{
    event::{self, IdempotencyKey},
    ingest,
    provider::{Normalized, RawWebhook},
    source::Source,
};

use crate::support::{Fixture, fixture_folder, fixture_source, fixtures, now};

/// What a genuine webhook becomes, in words: the way of `verdict::ingest` without the log.
fn outcome(source: &Source, webhook: RawWebhook) -> String {
    let webhook = source.verify(webhook, now()).expect("a fixture is genuine");
    let webhook = match source.is_encrypted(&webhook) {
        true => match source.decrypt(webhook.content(), now()) {
            Ok(content) => webhook.with_decrypted(content),
            Err(error) => return format!("QUARANTINED {error}"),
        },
        false => webhook,
    };
    match source.normalize(&webhook) {
        Err(error) => format!("QUARANTINED {}: {error}", error.reason().as_str_name()),
        Ok(Normalized::Ignored) => "IGNORED".to_owned(),
        Ok(Normalized::Event(normalized)) => {
            let provider = source.provider.name();
            let id = event::event_id(provider, &source.account, &normalized.key);
            let event = ingest::describe(source, &webhook, id, normalized.event);
            format!(
                "{}\n{}",
                key(&normalized.key),
                event::to_pretty_json(&event).unwrap()
            )
        }
    }
}

fn key(key: &IdempotencyKey) -> String {
    match key {
        IdempotencyKey::ProviderEventId(id) => format!("provider event id {id}"),
        IdempotencyKey::Fields(fields) => format!("fields {fields:?}"),
        IdempotencyKey::SignedBytes(sha256) => format!("signed bytes {}", hex::encode(sha256)),
    }
}

#[test]
fn every_fixture_becomes_what_its_snapshot_says() {
    for Fixture {
        provider,
        case,
        webhook,
    } in fixtures()
    {
        let source = fixture_source(provider.name());
        let mut settings = insta::Settings::new();
        settings.set_snapshot_path(fs::canonicalize(fixture_folder(provider.name())).unwrap());
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(case, outcome(&source, webhook)));
    }
}

#[test]
fn no_snapshot_is_left_over() {
    for provider in verdict::provider::PROVIDERS {
        let files = |extension: &str| -> BTreeSet<String> {
            fs::read_dir(fixture_folder(provider.name()))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|found| found == extension))
                .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(files("snap"), files("http"), "{}", provider.name());
    }
}
