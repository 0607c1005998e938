//! The adapters. The input is a request as the fixtures hold them, with the body before it is signed and encrypted.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use prost::Message;
use verdict::{
    event, http_file, ingest,
    proto::{Outcome, ReasonCode, VerificationEvent, verification_event::Detail},
    provider::{NormalizeError, Normalized, NormalizedEvent, PROVIDERS, VerifiedWebhook},
    source::Source,
};

use crate::{now, secret, source};

/// A source for each scheme of each provider.
static SOURCES: LazyLock<HashMap<&'static str, Vec<Source>>> = LazyLock::new(|| {
    let of = |provider: &&'static dyn verdict::provider::Provider| {
        let schemes = provider.schemes().iter();
        let sources = schemes.map(|scheme| source(*provider, scheme)).collect();
        (provider.name(), sources)
    };
    PROVIDERS.iter().map(of).collect()
});

/// Signs the body by each scheme of the provider, and has it normalized.
pub fn check(provider: &str, request: &[u8]) {
    let Ok(request) = http_file::parse(&Bytes::copy_from_slice(request)) else {
        return;
    };
    for source in &SOURCES[provider] {
        let scheme = source.schemes[0];
        let Ok(mut signed) = scheme.sign(request.payload.clone(), &secret(), now()) else {
            continue;
        };
        for (name, value) in request.headers.iter() {
            if signed.headers.single(name).is_none() {
                signed.headers.push(name, value);
            }
        }
        let webhook = source.verify(signed, now());
        let webhook = webhook.expect("what a scheme signs, it proves genuine");
        assert_eq!(webhook.scheme().name, scheme.name);
        check_normalized(source, &webhook);
    }
}

fn check_normalized(source: &Source, webhook: &VerifiedWebhook) {
    let first = source.normalize(webhook);
    let second = source.normalize(webhook);
    match (first, second) {
        (Ok(Normalized::Event(first)), Ok(Normalized::Event(second))) => {
            assert_eq!(first.key, second.key);
            // Compared as bytes: what is stored must be the same, whatever equality of messages means.
            let encoded = event::encode(first.event.clone());
            assert_eq!(encoded, event::encode(second.event));
            check_event(source, webhook, *first);
        }
        (Ok(Normalized::Ignored), Ok(Normalized::Ignored)) => {}
        (Err(first), Err(second)) => {
            assert_eq!(first, second);
            check_error(&first);
        }
        (first, second) => panic!("{first:?}, and the second time {second:?}"),
    }
}

fn check_event(source: &Source, webhook: &VerifiedWebhook, normalized: NormalizedEvent) {
    let id = event::event_id(source.provider.name(), &source.account, &normalized.key);
    let event = ingest::describe(source, webhook, id, normalized.event);
    assert!(event.detail.is_some());
    if let Some(Detail::Verification(verification)) = &event.detail {
        assert!(!verification.verification_id.is_empty());
        assert_ne!(verification.outcome(), Outcome::Unspecified);
        for reason in &verification.reasons {
            assert_ne!(reason.code(), ReasonCode::Unspecified);
        }
        for check in &verification.checks {
            for share in [check.score, check.threshold].into_iter().flatten() {
                assert!((0.0..=1.0).contains(&share), "a score of {share}");
            }
        }
        assert!(event::verification_key(&event).is_some());
    }
    // Subscribers decode what we encode, whatever is nested in it, and print it.
    let encoded = event::encode(event.clone());
    let decoded = VerificationEvent::decode(event::merge(&encoded.event, &encoded.personal_data));
    assert_eq!(decoded.as_ref(), Ok(&event));
    event::to_json(&event).expect("an event can be printed");
    let public = VerificationEvent::decode(encoded.event.clone()).expect("it can be decoded");
    assert_eq!(public.personal_data, None);
    if let Some(Detail::Verification(verification)) = public.detail {
        let of_checks = verification
            .checks
            .into_iter()
            .flat_map(|check| check.reasons);
        for reason in of_checks.chain(verification.reasons) {
            assert!(reason.message.is_empty(), "free text for everyone");
        }
    }
}

/// What is said about a delivery is one short line of plain text.
fn check_error(error: &NormalizeError) {
    let text = error.to_string();
    assert!(text.len() < 300, "{text}");
    assert!(!text.contains(|char: char| char.is_control()), "{text:?}");
}
