//! What is read by id, by page, and of personal data.

use std::collections::BTreeSet;

use verdict::proto::{
    Earliest, EventOrder, GetDeliveryRequest, GetEventRequest, GetVerificationRequest,
    ListEventsRequest, ListQuarantinedRequest, SubscribeRequest, VerificationEvent,
    get_delivery_request as get, subscribe_request::Start,
};

use super::{SOURCES, callers, filled, from, seen, subscribed, told};
use crate::callers::{House, by, caller};

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
