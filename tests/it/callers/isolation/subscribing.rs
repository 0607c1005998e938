//! Subscriptions and their consumers.

use std::collections::BTreeSet;

use tokio::time::{self, Duration};
use verdict::{
    ingest::proto_timestamp,
    proto::{
        CommitCursorRequest, Committed, Earliest, EventFilter, Latest, SubscribeMessage,
        SubscribeRequest, subscribe_request::Start,
    },
};

use super::{SOURCES, callers, filled, from, seen, subscribed, told};
use crate::{
    callers::{House, by, sources},
    support::{gu1_body, request, sign},
};

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
    let signed = sign(&sources()[0], gu1_body("live"));
    house
        .client
        .clone()
        .ingest(by("a", request("gu1", &signed)))
        .await
        .expect("taken");
    while let Ok(message) = time::timeout(Duration::from_millis(300), live.message()).await {
        let message = message.expect("no error").expect("no end").message;
        assert!(!matches!(message, Some(SubscribeMessage::Event(_))));
    }
    drop(live);
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
