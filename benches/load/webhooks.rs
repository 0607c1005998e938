//! Webhooks as the five providers send them, each of about 900 bytes and each another event, signed beforehand and encoded
//! as requests: what a client of the load costs is the same for every service.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use verdict::{
    config::{self, Variables},
    proto::{Header, IngestRequest, IngestStreamRequest},
    source::Source,
};

/// The sources that the webhooks are of. Kayle's are signed and not encrypted: opening one JWE takes longer than all the
/// rest of the way of a hundred webhooks, so a mixture with it would measure RSA.
pub(crate) const SOURCES: &str = r#"
[[sources]]
provider = "fractal"
secrets = [{ id = "a", env = "BENCH_SECRET" }]
[[sources]]
provider = "fyatu"
secrets = [{ id = "a", env = "BENCH_SECRET" }]
[[sources]]
provider = "gu1"
secrets = [{ id = "a", env = "BENCH_SECRET" }]
[[sources]]
provider = "kayle"
secrets = [{ id = "a", env = "BENCH_SECRET" }]
options = { allow_plaintext = true }
[[sources]]
provider = "ralio"
secrets = [{ id = "a", env = "BENCH_SECRET" }]
"#;

pub(crate) const SECRET: (&str, &str) = ("BENCH_SECRET", "a secret of the benchmarks");

/// When the first webhook happened.
const FIRST_SECOND: i64 = 1_780_000_000;

/// Makes webhooks.
pub(crate) struct Webhooks {
    sources: Vec<Arc<Source>>,
    /// How many webhooks in a row are of one verification of their provider.
    in_a_row: u64,
}

impl Webhooks {
    /// Three webhooks are of one verification.
    pub(crate) fn new() -> Self {
        Self::in_a_row(3)
    }

    /// So many webhooks are of one verification.
    pub(crate) fn in_a_row(in_a_row: u64) -> Self {
        let (name, value) = SECRET;
        let variables = Variables::from([(name.to_owned(), value.to_owned())]);
        let loaded = config::parse(SOURCES, &variables).and_then(|config| config.check(&variables));
        let sources = loaded.expect("a good configuration").sources;
        Self {
            sources: sources.into_iter().map(Arc::new).collect(),
            in_a_row,
        }
    }

    fn request(&self, number: u64, now: Timestamp) -> IngestRequest {
        let source = &self.sources[number as usize % self.sources.len()];
        let verification = number / self.sources.len() as u64 / self.in_a_row;
        let provider = source.provider.name();
        let scheme = source.schemes[0];
        let keys = source.keys();
        let webhook = scheme
            .sign(
                body(provider, number, verification).into(),
                &keys.secrets[0],
                now,
            )
            .expect("a body that can be signed");
        let headers = webhook.headers.iter();
        IngestRequest {
            provider: provider.to_owned(),
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

    /// `IngestRequest`s with these numbers.
    pub(crate) fn unary(&self, numbers: std::ops::Range<u64>) -> Vec<Bytes> {
        let now = now();
        let encode = |number| Bytes::from(self.request(number, now).encode_to_vec());
        numbers.map(encode).collect()
    }

    /// `IngestStreamRequest`s with these numbers.
    pub(crate) fn stream(&self, numbers: std::ops::Range<u64>) -> Vec<Bytes> {
        let now = now();
        let encode = |number| {
            let request = IngestStreamRequest {
                correlation_id: String::new(),
                request: Some(self.request(number, now)),
            };
            Bytes::from(request.encode_to_vec())
        };
        numbers.map(encode).collect()
    }
}

/// What is signed now is fresh.
fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "the clock of the senders")]
    Timestamp::now()
}

/// A body of this provider, of a verification with this number.
fn body(provider: &str, number: u64, verification: u64) -> String {
    // Some have no id of their own: what tells two of one verification apart is the time.
    let time = Timestamp::constant(FIRST_SECOND + number as i64, 0);
    let filler = "x".repeat(260);
    match provider {
        "fractal" => format!(
            r#"{{"type":"verification_approved","data":{{"level":"plus","user_id":"f7ac7a10-0000-4000-8000-{verification:012}","timestamp":"{time}","note":"{filler}{filler}{filler}"}}}}"#
        ),
        "fyatu" => format!(
            r#"{{"event":"cardholder.kyc_rejected","version":"3.0","eventId":"0e7d0000-0000-4000-8000-{number:012}","data":{{"cardholderId":"{verification:020}","firstName":"Some","lastName":"Body","status":"REJECTED","reason":"the document of {number} is not readable: {filler}{filler}","appId":"{filler}","timestamp":"2026-05-28T20:26:40+00:00"}}}}"#
        ),
        "gu1" => format!(
            r#"{{"event":"kyc.validation_approved","timestamp":"{time}","organizationId":"org-{number}","payload":{{"id":"val-{verification}","entityId":"ent-{verification}","validationSessionId":"session-{number}","status":"approved","verifiedFields":["name","dateOfBirth","documentNumber","address"],"extractedData":{{"firstName":"Some","lastName":"Body {number}","dateOfBirth":"1990-01-01","documentNumber":"X{number:09}","nationality":"ARG","address":"Example Street {number}, Example Town"}},"warnings":[],"decision":{{"score":0.97,"provider":"internal","notes":"{filler}"}},"metadata":{{"flow":"onboarding","number":{number}}}}}}}"#
        ),
        "kayle" => format!(
            r#"{{"data":{{"failure_code":"liveness_failed","nfc_tries_used":1,"liveness_tries_used":3,"note":"{filler}{filler}"}},"metadata":{{"contract_version":3,"event_id":"evt_{number}","verification_session_id":"vs_{verification}"}},"type":"verification.session.failed"}}"#
        ),
        _ => format!(
            r#"{{"eventId":"aaaaaaaa-0000-4000-8000-{number:012}","eventType":"kyc_session_failed","timestamp":"2026-05-28T20:26:40.123Z","data":{{"sessionId":"22222222-0000-4000-8000-{verification:012}","userId":"11111111-0000-4000-8000-{verification:012}","entityType":"user","checks":[{{"type":"document-verification","state":2,"data":{{"provider":"mati"}},"reasons":[{{"type":"document","code":"KYC.DOC.DETERIORATED","message":"{filler}","category":"DOC"}}]}},{{"type":"face-matching","state":1,"data":{{}}}}]}}}}"#
        ),
    }
}
