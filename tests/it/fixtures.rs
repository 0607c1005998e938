//! Every fixture becomes what its snapshot says.
//!
//! A new case is a new file. Run the tests with `INSTA_UPDATE=always`, and read the snapshot that appears beside it as
//! carefully as code.

use std::{collections::BTreeSet, fs};

use bytes::Bytes;
use prost::Message;
use verdict::{
    event::{self, IdempotencyKey},
    ingest::{self, Receipt},
    log::Origin,
    proto::{Delivery, Header},
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
        IdempotencyKey::SignedBytes(sha256) => {
            format!("signed bytes {}", base16ct::lower::encode_string(sha256))
        }
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

/// What is stored of a genuine webhook, if it becomes an event.
fn stored(source: &Source, webhook: RawWebhook) -> Option<Bytes> {
    let webhook = source.verify(webhook, now()).expect("a fixture is genuine");
    let Ok(Normalized::Event(normalized)) = source.normalize(&webhook) else {
        return None;
    };
    let receipt = Receipt {
        received_at: ingest::proto_timestamp(now()),
        trace: None,
        origin: Origin::Received,
    };
    Some(ingest::complete(source, &webhook, *normalized, receipt).delivery)
}

#[test]
fn what_is_stored_is_the_delivery_without_the_headers_of_the_hop() {
    let mut seen = 0;
    for Fixture {
        provider,
        mut webhook,
        ..
    } in fixtures()
    {
        let source = fixture_source(provider.name());
        webhook.headers.push("X-Empty", "");
        webhook.headers.push("X-Long", "y".repeat(200));
        let header = |(name, value): (&str, &str)| Header {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let headers: Vec<Header> = webhook.headers.iter().map(header).collect();
        webhook.headers.push("Cookie", "of the hop");
        webhook.headers.push("authorization", "of the hop");
        let payload = webhook.payload.clone();
        let Some(stored) = stored(&source, webhook) else {
            continue;
        };
        let delivery = Delivery::decode(stored.clone()).unwrap();
        assert_eq!(delivery.encode_to_vec(), stored);
        assert_eq!((&delivery.headers, &delivery.payload), (&headers, &payload));
        assert_eq!(
            (&*delivery.provider, &*delivery.account),
            (provider.name(), "default")
        );
        assert_eq!(delivery.received_at, Some(ingest::proto_timestamp(now())));
        assert!(!delivery.signature_scheme.is_empty() && !delivery.secret_id.is_empty());
        seen += 1;
    }
    assert!(seen > 50, "{seen} fixtures become events");
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
