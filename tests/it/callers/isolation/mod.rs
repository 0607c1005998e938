//! Isolation: a caller that is limited to a source sees and changes nothing of the others, by whatever rpc, filter, cursor,
//! token or id it tries.

mod operating;
mod reading;
mod subscribing;

use std::collections::BTreeSet;

use futures_util::StreamExt;
use tonic::{Code, Status};
use verdict::proto::{
    IngestRequest, IngestStatus, SubscribeMessage, SubscribeRequest, VerificationEvent,
    subscribe_request::Start,
};

use super::{House, by, caller, sources};
use crate::support::{decode, fixture, gu1_body, reason, request, sign};

const EVERYTHING: &str = "ingest subscribe personal_data backfill admin";

/// What lies in the log of a house: for each source an event and a delivery in the quarantine.
struct Content {
    events: Vec<VerificationEvent>,
    cursors: Vec<String>,
    quarantined: Vec<String>,
}

/// The sources, as `provider/account`, in the order of [`sources`].
const SOURCES: [&str; 3] = ["gu1/default", "gu1/other", "fyatu/default"];

/// Callers who may do everything with one source each, one who may do it with all, and one who may see personal data of
/// one only.
fn callers() -> String {
    let limit = |source: &str| {
        let (provider, account) = source.split_once('/').expect("a source");
        format!("providers = [\"{provider}\"]\naccounts = [\"{account}\"]")
    };
    let all = caller("all", &[(EVERYTHING, "")]);
    let one = SOURCES.iter().zip(["a", "b", "c"]);
    let one = one.map(|(source, name)| caller(name, &[(EVERYTHING, &limit(source))]));
    let seeing = caller(
        "seeing",
        &[
            ("subscribe admin", ""),
            ("personal_data", &limit(SOURCES[2])),
        ],
    );
    let limited_to_provider = caller("gu1", &[(EVERYTHING, "providers = [\"gu1\"]")]);
    format!(
        "{all}{}{seeing}{limited_to_provider}",
        one.collect::<String>()
    )
}

/// A signed webhook for one of the sources.
fn webhook(source: usize, case: &str) -> IngestRequest {
    let source = &sources()[source];
    let provider = source.provider.name();
    let body = match (provider, case) {
        ("gu1", "event") => gu1_body(&source.account).into(),
        ("gu1", _) => fixture("gu1", "unknown_event").payload,
        (_, "event") => fixture("fyatu", "f2_rejected").payload,
        _ => fixture("fyatu", "unknown_status").payload,
    };
    IngestRequest {
        account: source.account.clone(),
        ..request(provider, &sign(source, body))
    }
}

async fn filled(house: &House) -> Content {
    let mut content = Content {
        events: Vec::new(),
        cursors: Vec::new(),
        quarantined: Vec::new(),
    };
    for source in 0..SOURCES.len() {
        let mut client = house.client.clone();
        let request = IngestRequest {
            return_event: true,
            ..webhook(source, "event")
        };
        let accepted = client
            .ingest(by("all", request))
            .await
            .expect("a good webhook");
        let accepted = accepted.into_inner();
        assert_eq!(accepted.status(), IngestStatus::Accepted);
        content.events.push(accepted.event.expect("the event"));
        content.cursors.push(accepted.cursor);
        let request = webhook(source, "unknown");
        let kept = client
            .ingest(by("all", request))
            .await
            .expect("a genuine webhook");
        content.quarantined.push(kept.into_inner().quarantine_id);
    }
    content
}

fn source_of(event: &VerificationEvent) -> String {
    let source = event.source.as_ref().expect("a source");
    format!("{}/{}", source.provider, source.account)
}

/// Everything that a subscription sends before it has caught up.
async fn subscribed(
    house: &House,
    token: &str,
    request: SubscribeRequest,
) -> Vec<VerificationEvent> {
    let request = SubscribeRequest {
        stop_when_caught_up: true,
        ..request
    };
    let stream = house.client.clone().subscribe(by(token, request)).await;
    let messages: Vec<_> = stream.expect("a subscription").into_inner().collect().await;
    let messages = messages
        .into_iter()
        .map(|message| message.expect("no error").message);
    let events = messages.filter_map(|message| match message {
        Some(SubscribeMessage::Event(event)) => Some(decode(event)),
        _ => None,
    });
    events.collect()
}

fn from(start: Start) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(start),
        ..Default::default()
    }
}

/// What is seen of sources, by name.
fn seen<'e>(events: impl IntoIterator<Item = &'e VerificationEvent>) -> BTreeSet<String> {
    events.into_iter().map(source_of).collect()
}

/// The reason and the message of what must be refused.
fn told<T>(refused: Result<T, Status>) -> (Code, String, String) {
    let Err(refused) = refused else {
        panic!("it was not refused")
    };
    (
        refused.code(),
        reason(&refused),
        refused.message().to_owned(),
    )
}
