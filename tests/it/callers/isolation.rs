//! Isolation: a caller that is limited to a source sees and changes nothing of the others, by whatever rpc, filter, cursor,
//! token or id it tries.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use tokio::time::{self, Duration};
use tonic::{Code, Status};
use verdict::{
    ingest::proto_timestamp,
    log::{QuarantineKind, ReadLimit},
    proto::{
        CommitCursorRequest, Committed, DeleteConsumerRequest, DiscardQuarantinedRequest, Earliest,
        EraseSubjectRequest, EventFilter, EventOrder, GetDeliveryRequest, GetEventRequest,
        GetStatusRequest, GetVerificationRequest, IngestRequest, IngestStatus, IngestStreamRequest,
        Latest, ListEventsRequest, ListQuarantinedRequest, ListSourcesRequest, QuarantineFilter,
        RedriveRequest, RenormalizeRequest, SubscribeMessage, SubscribeRequest, VerificationEvent,
        discard_quarantined_request as discard, get_delivery_request as get,
        ingest_stream_response::Result as Answered, redrive_request as redrive,
        renormalize_response::Message as Renormalized, subscribe_request::Start,
    },
    provider::jwe,
};

use super::{House, by, caller, sources};
use crate::support::{decode, fixture, gu1_body, real_now, reason, request, sign};

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

#[tokio::test]
async fn a_subscriber_sees_its_own_source_wherever_it_starts_and_whatever_it_asks_for() {
    let house = House::open(&callers()).await;
    let content = filled(&house).await;
    for (own, name) in ["a", "b", "c"].into_iter().enumerate() {
        let mine = BTreeSet::from([SOURCES[own].to_owned()]);
        let mut starts = vec![
            from(Start::Earliest(Earliest {})),
            from(Start::Since(proto_timestamp(jiff::Timestamp::UNIX_EPOCH))),
            SubscribeRequest {
                consumer: "c".to_owned(),
                ..from(Start::Committed(Committed {}))
            },
        ];
        let other_cursors = content.cursors.iter().cloned().map(Start::AfterCursor);
        starts.extend(other_cursors.map(from));
        for start in starts {
            for filter in [
                None,
                Some(EventFilter {
                    providers: vec!["gu1".to_owned(), "fyatu".to_owned()],
                    ..Default::default()
                }),
                Some(EventFilter {
                    accounts: vec!["default".to_owned(), "other".to_owned()],
                    ..Default::default()
                }),
            ] {
                for include_personal_data in [false, true] {
                    let request = SubscribeRequest {
                        filter: filter.clone(),
                        include_personal_data,
                        ..start.clone()
                    };
                    let events = subscribed(&house, name, request).await;
                    assert!(
                        seen(&events).is_subset(&mine),
                        "{name} sees {:?}",
                        seen(&events)
                    );
                }
            }
        }
        assert_eq!(
            seen(&subscribed(&house, name, from(Start::Earliest(Earliest {}))).await),
            mine
        );
        for (other, event) in content
            .events
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != own)
        {
            let subject = event
                .subject
                .clone()
                .expect("a subject")
                .provider_subject_id;
            let filter = EventFilter {
                providers: vec![
                    SOURCES[other]
                        .split('/')
                        .next()
                        .expect("a provider")
                        .to_owned(),
                ],
                accounts: vec![
                    SOURCES[other]
                        .split('/')
                        .next_back()
                        .expect("an account")
                        .to_owned(),
                ],
                subject_ids: vec![subject],
                ..Default::default()
            };
            let request = SubscribeRequest {
                filter: Some(filter),
                ..from(Start::Earliest(Earliest {}))
            };
            assert!(subscribed(&house, name, request).await.is_empty());
        }
    }
    // What comes live goes to its own caller too, and to no other.
    let live = house
        .client
        .clone()
        .subscribe(by("c", from(Start::Latest(Latest {}))))
        .await;
    let mut live = live.expect("a subscription").into_inner();
    let mut request = webhook(0, "event");
    request.payload = gu1_body("live").into();
    let signed = sign(&sources()[0], request.payload);
    house
        .client
        .clone()
        .ingest(by("a", super::super::support::request("gu1", &signed)))
        .await
        .expect("taken");
    while let Ok(message) = time::timeout(Duration::from_millis(300), live.message()).await {
        let message = message.expect("no error").expect("no end").message;
        assert!(!matches!(message, Some(SubscribeMessage::Event(_))));
    }
    drop(live);
    house.close().await;
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

#[tokio::test]
async fn what_is_read_by_id_or_token_is_not_there_for_others() {
    let house = House::open(&callers()).await;
    let content = filled(&house).await;
    let (mut client, mut admin) = (house.client.clone(), house.admin.clone());
    let nothing = uuid::Uuid::from_u128(1).to_string();
    let mine = content.events[0].clone();
    for (other, source) in SOURCES.iter().enumerate().skip(1) {
        let event = &content.events[other];
        // As if it had never been there.
        for include_personal_data in [false, true] {
            let get = |id: &str| {
                by(
                    "a",
                    GetEventRequest {
                        event_id: id.to_owned(),
                        include_personal_data,
                    },
                )
            };
            let missing = told(client.get_event(get(&nothing)).await);
            assert_eq!(told(client.get_event(get(&event.event_id)).await), missing);
        }
        let (provider, account) = source.split_once('/').expect("a source");
        let id = |event: &VerificationEvent| match &event.detail {
            Some(verdict::proto::verification_event::Detail::Verification(one)) => {
                one.verification_id.clone()
            }
            _ => panic!("not a verification"),
        };
        let get = |verification_id: String, page_token: &str| {
            by(
                "a",
                GetVerificationRequest {
                    provider: provider.to_owned(),
                    account: account.to_owned(),
                    verification_id,
                    page_token: page_token.to_owned(),
                    ..Default::default()
                },
            )
        };
        let missing = told(client.get_verification(get("nothing".to_owned(), "")).await);
        assert_eq!(
            told(client.get_verification(get(id(event), "")).await),
            missing
        );
        // A token that leads to another's event is a token of nothing.
        let token = format!("h{}", content.cursors[other]);
        let refused = client.get_verification(by(
            "a",
            GetVerificationRequest {
                provider: "gu1".to_owned(),
                verification_id: id(&mine),
                page_token: token,
                ..Default::default()
            },
        ));
        assert_eq!(told(refused.await).1, "INVALID_REQUEST");

        let get = |target| {
            by(
                "a",
                GetDeliveryRequest {
                    target: Some(target),
                },
            )
        };
        let missing = told(
            admin
                .get_delivery(get(get::Target::EventId(nothing.clone())))
                .await,
        );
        let target = get::Target::EventId(event.event_id.clone());
        assert_eq!(told(admin.get_delivery(get(target)).await), missing);
        let target = get::Target::QuarantineId(content.quarantined[other].clone());
        assert_eq!(told(admin.get_delivery(get(target)).await), missing);
    }
    // Pages of all, with their tokens, in the hands of a caller who may see one source.
    for order in [EventOrder::OldestFirst, EventOrder::NewestFirst] {
        let mut page_token = String::new();
        loop {
            let list = |page_token: &str| ListEventsRequest {
                page_size: 1,
                page_token: page_token.to_owned(),
                order: order.into(),
                include_personal_data: true,
                ..Default::default()
            };
            let page = client
                .list_events(by("a", list(&page_token)))
                .await
                .expect("a page")
                .into_inner();
            let events = page
                .events
                .iter()
                .map(|listed| listed.event.as_ref().expect("an event"));
            assert!(seen(events).is_subset(&BTreeSet::from([SOURCES[0].to_owned()])));
            let page = client
                .list_events(by("all", list(&page_token)))
                .await
                .expect("a page")
                .into_inner();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    house.close().await;
}

#[tokio::test]
async fn personal_data_goes_with_its_scope_only() {
    let house = House::open(&format!(
        "{}{}",
        callers(),
        caller("blind", &[("subscribe admin", "")])
    ))
    .await;
    let content = filled(&house).await;
    let (mut client, mut admin) = (house.client.clone(), house.admin.clone());
    let request = |include_personal_data| SubscribeRequest {
        include_personal_data,
        ..from(Start::Earliest(Earliest {}))
    };
    let everything = subscribed(&house, "all", request(true)).await;
    let with = |events: &[VerificationEvent]| {
        seen(events.iter().filter(|event| event.personal_data.is_some()))
    };
    assert!(
        with(&everything).contains(SOURCES[2]),
        "a fixture without personal data proves nothing"
    );
    // Every event, and the personal data of the one source of which it may see that.
    let partly = subscribed(&house, "seeing", request(true)).await;
    assert_eq!(partly.len(), everything.len());
    assert_eq!(with(&partly), BTreeSet::from([SOURCES[2].to_owned()]));
    assert!(with(&subscribed(&house, "all", request(false)).await).is_empty());

    let refused = client.clone().subscribe(by("blind", request(true))).await;
    assert_eq!(told(refused).1, "SCOPE_MISSING");
    let list = ListEventsRequest {
        include_personal_data: true,
        ..Default::default()
    };
    assert_eq!(
        told(client.list_events(by("blind", list)).await).1,
        "SCOPE_MISSING"
    );
    let get = GetEventRequest {
        event_id: content.events[2].event_id.clone(),
        include_personal_data: true,
    };
    assert_eq!(
        told(client.get_event(by("blind", get)).await).1,
        "SCOPE_MISSING"
    );
    let list = ListQuarantinedRequest {
        include_deliveries: true,
        ..Default::default()
    };
    assert_eq!(
        told(admin.list_quarantined(by("blind", list.clone())).await).1,
        "SCOPE_MISSING"
    );
    let get = |id: &str| GetDeliveryRequest {
        target: Some(get::Target::EventId(id.to_owned())),
    };
    let refused = admin
        .get_delivery(by("seeing", get(&content.events[0].event_id)))
        .await;
    assert_eq!(told(refused).1, "SCOPE_MISSING");
    admin
        .get_delivery(by("seeing", get(&content.events[2].event_id)))
        .await
        .expect("its own");
    let listed = admin
        .list_quarantined(by("seeing", list))
        .await
        .expect("a list")
        .into_inner();
    let with: Vec<_> = listed
        .quarantined
        .iter()
        .filter(|one| one.delivery.is_some())
        .collect();
    assert_eq!((listed.quarantined.len(), with.len()), (3, 1));
    assert_eq!(with[0].provider, "fyatu");
    house.close().await;
}

#[tokio::test]
async fn each_caller_has_consumers_of_its_own() {
    let house = House::open(&callers()).await;
    let content = filled(&house).await;
    let mut client = house.client.clone();
    let commit = |cursor: &str, force| CommitCursorRequest {
        consumer: "c".to_owned(),
        cursor: cursor.to_owned(),
        force,
    };
    client
        .commit_cursor(by("all", commit(&content.cursors[2], false)))
        .await
        .expect("stored");
    client
        .commit_cursor(by("gu1", commit(&content.cursors[0], false)))
        .await
        .expect("not behind");
    let committed = SubscribeRequest {
        consumer: "c".to_owned(),
        ..from(Start::Committed(Committed {}))
    };
    assert_eq!(subscribed(&house, "gu1", committed.clone()).await.len(), 1);
    assert!(
        subscribed(&house, "all", committed.clone())
            .await
            .is_empty()
    );
    assert_eq!(subscribed(&house, "a", committed).await.len(), 1);
    let names = house
        .log
        .consumers()
        .into_iter()
        .map(|consumer| consumer.name);
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        ["all/c", "gu1/c"].map(str::to_owned).into()
    );

    // A name with a slash is a name of its own, too.
    let mut tricky = commit(&content.cursors[0], true);
    tricky.consumer = "../all/c".to_owned();
    client
        .commit_cursor(by("gu1", tricky))
        .await
        .expect("stored");
    // And none uses up what is there for all.
    for number in 2..250 {
        let commit = CommitCursorRequest {
            consumer: number.to_string(),
            ..commit(&content.cursors[0], false)
        };
        client
            .commit_cursor(by("gu1", commit))
            .await
            .expect("stored");
    }
    let more = CommitCursorRequest {
        consumer: "more".to_owned(),
        ..commit(&content.cursors[0], false)
    };
    assert_eq!(
        told(client.commit_cursor(by("gu1", more.clone())).await).1,
        "INVALID_REQUEST"
    );
    client
        .commit_cursor(by("a", more))
        .await
        .expect("others still may");
    house.close().await;
}

#[tokio::test]
async fn nobody_hands_over_webhooks_of_others_or_learns_whether_there_are_any() {
    let house = House::open(&callers()).await;
    let mut client = house.client.clone();
    let before = house.log.tail().end();
    let nowhere = |provider: &str, account: &str| IngestRequest {
        provider: provider.to_owned(),
        account: account.to_owned(),
        ..webhook(0, "event")
    };
    let attempts = [
        webhook(1, "event"),
        webhook(2, "event"),
        nowhere("gu1", "nowhere"),
        nowhere("nobody", "default"),
        nowhere("GU1", ""),
    ];
    let answers = attempts.clone().map(|attempt| {
        let mut client = client.clone();
        async move { told(client.ingest(by("a", attempt)).await) }
    });
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers[0].1, "SCOPE_MISSING");
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );

    let requests = attempts.clone().map(|request| IngestStreamRequest {
        correlation_id: String::new(),
        request: Some(request),
    });
    let stream = client
        .ingest_stream(by("a", tokio_stream::iter(requests)))
        .await;
    let answers: Vec<_> = stream.expect("a stream").into_inner().collect().await;
    assert_eq!(answers.len(), attempts.len());
    for answer in answers {
        match answer.expect("no end").result {
            Some(Answered::Error(error)) => assert_eq!(error.reason, "SCOPE_MISSING"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(house.log.tail().end(), before);
    house.close().await;
}

#[tokio::test]
async fn operators_of_one_source_touch_no_other() {
    let house = House::open(&callers()).await;
    let content = filled(&house).await;
    let mut admin = house.admin.clone();
    let listed = admin
        .list_sources(by("b", ListSourcesRequest {}))
        .await
        .expect("a list");
    let listed = listed.into_inner().sources;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].account, "other");
    for include_deliveries in [false, true] {
        let list = ListQuarantinedRequest {
            include_deliveries,
            ..Default::default()
        };
        let listed = admin
            .list_quarantined(by("b", list))
            .await
            .expect("a list")
            .into_inner();
        let listed: Vec<_> = listed
            .quarantined
            .into_iter()
            .map(|one| one.quarantine_id)
            .collect();
        assert_eq!(listed, [content.quarantined[1].clone()]);
        let list = ListQuarantinedRequest {
            include_deliveries,
            provider: "fyatu".to_owned(),
            ..Default::default()
        };
        let listed = admin
            .list_quarantined(by("b", list))
            .await
            .expect("a list")
            .into_inner();
        assert_eq!(listed, Default::default());
    }
    let nothing = uuid::Uuid::from_u128(1).to_string();
    for other in [0, 2] {
        let redrive = |id: &str| RedriveRequest {
            target: Some(redrive::Target::QuarantineId(id.to_owned())),
            ..Default::default()
        };
        let missing = told(admin.redrive(by("b", redrive(&nothing))).await);
        assert_eq!(
            told(
                admin
                    .redrive(by("b", redrive(&content.quarantined[other])))
                    .await
            ),
            missing
        );
        let discard = |id: &str| DiscardQuarantinedRequest {
            target: Some(discard::Target::QuarantineId(id.to_owned())),
        };
        let missing = told(admin.discard_quarantined(by("b", discard(&nothing))).await);
        assert_eq!(
            told(
                admin
                    .discard_quarantined(by("b", discard(&content.quarantined[other])))
                    .await
            ),
            missing
        );
    }
    for filter in [
        QuarantineFilter::default(),
        QuarantineFilter {
            provider: "fyatu".to_owned(),
            ..Default::default()
        },
    ] {
        let request = RedriveRequest {
            target: Some(redrive::Target::Filter(filter.clone())),
            ..Default::default()
        };
        let redriven = admin
            .redrive(by("b", request))
            .await
            .expect("an answer")
            .into_inner();
        assert!(
            redriven
                .redriven
                .iter()
                .all(|one| one.quarantine_id == content.quarantined[1])
        );
    }
    let renormalize = RenormalizeRequest::default();
    let stream = admin
        .renormalize(by("b", renormalize))
        .await
        .expect("a walk")
        .into_inner();
    let messages: Vec<_> = stream.collect().await;
    match messages
        .last()
        .expect("a summary")
        .as_ref()
        .expect("no error")
        .message
        .as_ref()
    {
        Some(Renormalized::Summary(summary)) => assert_eq!(summary.examined, 1),
        other => panic!("{other:?}"),
    }
    // What is about all sources is for those only who operate all.
    assert_eq!(
        told(admin.get_status(by("b", GetStatusRequest {})).await).1,
        "SCOPE_MISSING"
    );
    let delete = DeleteConsumerRequest {
        consumer: "all/c".to_owned(),
    };
    assert_eq!(
        told(admin.delete_consumer(by("b", delete)).await).1,
        "SCOPE_MISSING"
    );
    let erase = EraseSubjectRequest {
        provider: "fyatu".to_owned(),
        ..Default::default()
    };
    assert!(admin.erase_subject(by("b", erase)).await.is_err());

    let all = DiscardQuarantinedRequest {
        target: Some(discard::Target::Filter(QuarantineFilter::default())),
    };
    let discarded = admin
        .discard_quarantined(by("b", all))
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(discarded.discarded, 1);
    let limit = ReadLimit {
        records: 10,
        bytes: 1 << 20,
    };
    let left = house
        .log
        .quarantined(QuarantineKind::Genuine, 0, limit)
        .await
        .expect("the quarantine");
    assert_eq!(left.len(), 2);
    house.close().await;
}

#[tokio::test]
async fn only_who_may_backfill_says_when_a_webhook_was_received() {
    let ingesting = caller("ingesting", &[("ingest subscribe", "")]);
    let partly = caller(
        "partly",
        &[
            ("ingest subscribe", ""),
            ("backfill", "accounts = [\"other\"]"),
        ],
    );
    let house = House::open(&format!("{}{ingesting}{partly}", callers())).await;
    let mut client = house.client.clone();
    let then: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
    let mut send = async |token: &str, id: &str, received_at| {
        let source = &sources()[0];
        let request = IngestRequest {
            received_at: Some(proto_timestamp(received_at)),
            return_event: true,
            ..request("gu1", &sign(source, gu1_body(id)))
        };
        let answer = client.ingest(by(token, request)).await?;
        Ok::<_, Status>(answer.into_inner().event.expect("an event").received_at)
    };
    assert_eq!(
        send("all", "1", then).await.expect("taken"),
        Some(proto_timestamp(then))
    );
    for token in ["ingesting", "partly"] {
        let received = send(token, token, then)
            .await
            .expect("taken")
            .expect("a time");
        assert!(
            received.seconds > then.as_second() + 1000,
            "{token} is believed"
        );
    }
    let future = real_now() + jiff::SignedDuration::from_secs(3600);
    assert_eq!(told(send("all", "2", future).await).1, "INVALID_REQUEST");

    // A signed time is checked against the time that is believed.
    let kayle = &sources()[3];
    let body = r#"{"type":"verification.session.expired","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    let encrypted =
        jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[0]).expect("encrypted");
    let signed = kayle.schemes[0].sign(encrypted.into(), &kayle.keys().secrets[0], then);
    let old = |received_at| IngestRequest {
        received_at,
        ..request("kayle", &signed.clone().expect("signed"))
    };
    let then = Some(proto_timestamp(then));
    for (token, received_at) in [("ingesting", then), ("partly", then), ("all", None)] {
        let refused = house
            .client
            .clone()
            .ingest(by(token, old(received_at)))
            .await;
        assert_eq!(told(refused).1, "SIGNATURE_INVALID", "{token}");
    }
    let accepted = house
        .client
        .clone()
        .ingest(by("all", old(then)))
        .await
        .expect("genuine then");
    assert_eq!(accepted.into_inner().status(), IngestStatus::Accepted);
    house.close().await;
}
