//! A good webhook, and the ways to write it differently.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use verdict::provider::{
    Headers, Provider, RawWebhook,
    signature::{Recipe, Scheme, Secret},
};

use crate::support::secret;

/// A good webhook of a scheme, and the ways to spoil it.
pub(crate) struct Forger {
    pub(crate) provider: &'static dyn Provider,
    pub(crate) scheme: &'static Scheme,
    pub(crate) now: Timestamp,
    pub(crate) body: &'static str,
    pub(crate) good: RawWebhook,
}

impl Forger {
    pub(crate) fn new(
        provider: &'static dyn Provider,
        scheme: &'static Scheme,
        now: Timestamp,
    ) -> Self {
        let mut samples = provider.samples().iter();
        let sample = samples.find(|sample| sample.scheme == scheme.name);
        let body = sample.expect("every scheme has a sample").body;
        Self {
            provider,
            scheme,
            now,
            body,
            good: sign(scheme, body, &secret(), now),
        }
    }

    /// The same, signed at another time.
    pub(crate) fn signed_at(&self, seconds_from_now: i64) -> RawWebhook {
        let then = self.now + SignedDuration::from_secs(seconds_from_now);
        sign(self.scheme, self.body, &secret(), then)
    }

    /// The name of the header or member that holds the signature.
    pub(crate) fn place(&self) -> &'static str {
        match self.scheme.recipe {
            Recipe::Body { header, .. } | Recipe::TimestampedBody { header } => header,
            Recipe::Member { signature, .. } => signature,
        }
    }

    pub(crate) fn in_header(&self) -> bool {
        !matches!(self.scheme.recipe, Recipe::Member { .. })
    }

    /// The signature as a webhook holds it.
    pub(crate) fn value(&self, webhook: &RawWebhook) -> String {
        if let Some(value) = webhook.headers.single(self.place()) {
            return value.to_owned();
        }
        let body: serde_json::Value = serde_json::from_slice(&webhook.payload).expect("JSON");
        body[self.place()].as_str().expect("a signature").to_owned()
    }

    /// The hex digits in it.
    pub(crate) fn mac(&self, webhook: &RawWebhook) -> String {
        let value = self.value(webhook);
        let digits = value.rsplit('=').next();
        digits.expect("there is always a last part").to_owned()
    }

    /// The good webhook with another signature.
    pub(crate) fn with_value(&self, value: &str) -> RawWebhook {
        match self.in_header() {
            true => self.with_headers(&[(self.place(), value)]),
            false => self.with_member(&[(
                &serde_json::to_string(self.place()).expect("a string"),
                &serde_json::to_string(value).expect("a string"),
            )]),
        }
    }

    /// The good webhook with other hex digits in its signature.
    pub(crate) fn with_mac(&self, mac: &str) -> RawWebhook {
        let (value, right) = (self.value(&self.good), self.mac(&self.good));
        self.with_value(&value.replace(&right, mac))
    }

    /// The good body with other headers.
    pub(crate) fn with_headers(&self, headers: &[(&str, &str)]) -> RawWebhook {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        RawWebhook {
            payload: self.good.payload.clone(),
            headers: headers.iter().map(owned).collect(),
        }
    }

    /// The good body with other members, written as JSON, in the place of the one that holds the signature.
    pub(crate) fn with_member(&self, members: &[(&str, &str)]) -> RawWebhook {
        let right = format!("\"{}\":\"{}\"", self.place(), self.mac(&self.good));
        let members = members
            .iter()
            .map(|(name, value)| format!("{name}:{value}"));
        let members = members.collect::<Vec<_>>().join(",");
        let body = std::str::from_utf8(&self.good.payload).expect("JSON");
        assert!(body.contains(&right), "the signature is in its place");
        RawWebhook {
            payload: body.replacen(&right, &members, 1).into(),
            headers: Headers::default(),
        }
    }

    /// The good webhook with its signature under another name.
    pub(crate) fn with_name(&self, name: &str) -> RawWebhook {
        let value = self.value(&self.good);
        match self.in_header() {
            true => self.with_headers(&[(name, &value)]),
            false => self.with_member(&[(
                &serde_json::to_string(name).expect("a string"),
                &format!("\"{value}\""),
            )]),
        }
    }

    /// The good webhook with its signature and a second one under some name, in this order.
    pub(crate) fn with_two(&self, first: (&str, &str), second: (&str, &str)) -> RawWebhook {
        match self.in_header() {
            true => self.with_headers(&[first, second]),
            false => {
                let quoted = |(name, value)| (format!("\"{name}\""), format!("\"{value}\""));
                let (first, second) = (quoted(first), quoted(second));
                self.with_member(&[(&first.0, &first.1), (&second.0, &second.1)])
            }
        }
    }

    /// The good headers with another body.
    pub(crate) fn with_body(&self, body: impl Into<Bytes>) -> RawWebhook {
        RawWebhook {
            payload: body.into(),
            headers: self.good.headers.clone(),
        }
    }

    /// A webhook of this body that somebody else signs.
    pub(crate) fn signed_by(&self, secret: &[u8]) -> RawWebhook {
        let secret = Secret::new("of somebody else".to_owned(), secret.to_vec());
        sign(self.scheme, self.body, &secret, self.now)
    }
}

pub(crate) fn sign(
    scheme: &Scheme,
    body: &'static str,
    secret: &Secret,
    now: Timestamp,
) -> RawWebhook {
    let signed = scheme.sign(body.into(), secret, now);
    signed.expect("a sample can be signed")
}
