//! The signatures. The input is a request in which `$MAC` stands for the right signature of now and `$OLD` for one of
//! an hour ago, so that inputs get past the comparison without knowing the secret.

use std::sync::LazyLock;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use verdict::{
    http_file,
    provider::{
        Headers, PROVIDERS, RawWebhook,
        signature::{Recipe, VerifyError},
    },
    source::Source,
};

use crate::{now, secret, source};

const RIGHT: &str = "$MAC";
const STALE: &str = "$OLD";

/// A source for each scheme of each provider.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut sources = Vec::new();
    for provider in PROVIDERS {
        for scheme in provider.schemes() {
            sources.push(source(*provider, scheme));
        }
    }
    sources
});

/// Shows a request to every scheme.
pub fn check(request: &[u8]) {
    let Ok(template) = http_file::parse(&Bytes::copy_from_slice(request)) else {
        return;
    };
    for source in SOURCES.iter() {
        // Nobody who does not know the secret gets in.
        assert!(source.verify(template.clone(), now()).is_err());
        check_source(source, &template);
    }
}

fn check_source(source: &Source, template: &RawWebhook) {
    let an_hour_ago = now() - SignedDuration::from_hours(1);
    let (Some(right), Some(stale)) = (
        mac(source, &template.payload, now()),
        mac(source, &template.payload, an_hour_ago),
    ) else {
        return;
    };
    let webhook = fill(source, template, &right, &stale);
    let accepted = match source.verify(webhook.clone(), now()) {
        Ok(accepted) => accepted,
        Err(error) => {
            // The caller is not told why; the operator is, in words of ours.
            assert!(error.to_string().len() < 100);
            return;
        }
    };
    assert_eq!(accepted.secret_id(), secret().id());
    assert_eq!(accepted.raw().payload, webhook.payload);
    let named = |webhook: &RawWebhook, text: &str| match source.schemes[0].recipe {
        Recipe::Body { header, .. } | Recipe::TimestampedBody { header } => {
            let value = webhook.headers.single(header);
            value.is_some_and(|value| value.contains(text))
        }
        Recipe::Member { .. } => String::from_utf8_lossy(&webhook.payload).contains(text),
    };
    // Header values are compared as they were before the placeholder was filled in: only it can have been right.
    let timeless = !matches!(source.schemes[0].recipe, Recipe::TimestampedBody { .. });
    assert!(named(template, RIGHT) || timeless && named(template, STALE));

    if let Recipe::TimestampedBody { .. } = source.schemes[0].recipe {
        for seconds in [301, -301] {
            let then = now() + SignedDuration::from_secs(seconds);
            let refused = source.verify(webhook.clone(), then).map(|_| ());
            assert_eq!(refused, Err(VerifyError::Stale(301)));
        }
    }
    check_changed(source, &webhook, accepted.content_sha256());
}

/// One changed bit of the body is noticed, or nothing that is signed has changed.
fn check_changed(source: &Source, webhook: &RawWebhook, content_sha256: &[u8; 32]) {
    // A different byte for each body, and always the same for the same.
    let length = webhook.payload.len();
    let Some(index) = usize::from(content_sha256[0]).checked_rem(length) else {
        return;
    };
    let mut payload = webhook.payload.to_vec();
    payload[index] ^= 1;
    let changed = RawWebhook {
        payload: payload.into(),
        headers: webhook.headers.clone(),
    };
    if let Ok(accepted) = source.verify(changed, now()) {
        assert_eq!(accepted.content_sha256(), content_sha256);
        assert!(matches!(source.schemes[0].recipe, Recipe::Member { .. }));
    }
}

/// The right signature of a body at some time, in hex. `None` where there is nothing to sign.
fn mac(source: &Source, body: &Bytes, signed_at: Timestamp) -> Option<String> {
    let scheme = source.schemes[0];
    let signed = scheme.sign(body.clone(), &secret(), signed_at).ok()?;
    let hex_digits = match scheme.recipe {
        Recipe::Body { header, .. } | Recipe::TimestampedBody { header } => {
            let value = signed.headers.single(header)?;
            value.rsplit('=').next()?.to_owned()
        }
        // The member is put in the first place, or written where it was.
        Recipe::Member { signature, .. } => {
            let text = std::str::from_utf8(&signed.payload).ok()?;
            let name = format!("\"{signature}\":");
            let (_, after) = text.split_once(&name)?;
            after.trim_start().strip_prefix('"')?.get(..64)?.to_owned()
        }
    };
    Some(hex_digits)
}

/// The request with the signatures in the place of their placeholders: in the headers, and in the body where a member of
/// it holds the signature.
fn fill(source: &Source, template: &RawWebhook, right: &str, stale: &str) -> RawWebhook {
    let fill = |text: &str| text.replace(RIGHT, right).replace(STALE, stale);
    let headers: Headers = template
        .headers
        .iter()
        .map(|(name, value)| (name.to_owned(), fill(value)))
        .collect();
    let payload = match (
        source.schemes[0].recipe,
        std::str::from_utf8(&template.payload),
    ) {
        (Recipe::Member { .. }, Ok(text)) => fill(text).into(),
        _ => template.payload.clone(),
    };
    RawWebhook { payload, headers }
}
