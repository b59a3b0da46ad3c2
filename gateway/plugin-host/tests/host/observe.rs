//! Batches of events: one outcome for each, in order, or the call has failed.

use std::time::Duration;

use gantry_model::event::{Delivery, Event, EventKind, Payload};
use gantry_plugin_host::{Failure, Hook, Limits};
use serde_json::json;

use crate::{
    guest::{answering, authorize, doing, generous, host, source},
    ports,
};

pub(crate) fn event(number: u32, kind: EventKind) -> Event {
    Event {
        id: format!("00000000-0000-4000-8000-{number:012}"),
        kind,
        at_ms: ports::NOW_MS,
        repository: "apps/web".parse().unwrap(),
        digest: Some(ports::digest()),
        tag: Some("v1".parse().unwrap()),
        actor: "user:alice".to_owned(),
        payload: Payload {
            size: Some(17),
            ..Payload::default()
        },
    }
}

#[tokio::test]
async fn each_event_has_its_outcome_in_order() {
    let plugin = answering("").await;
    assert!(plugin.hooks().has(Hook::Observe));
    let events = [
        event(1, EventKind::ManifestDeleted),
        event(2, EventKind::ManifestPushed),
        event(3, EventKind::TagMoved),
    ];
    let outcomes = plugin.observe(&events).await.unwrap();
    let [
        Delivery::Drop(heard),
        Delivery::Delivered,
        Delivery::Retry(pause),
    ] = outcomes.as_slice()
    else {
        panic!("{outcomes:?}")
    };
    assert_eq!(*pause, Duration::from_millis(1500));
    for said in [
        "00000000-0000-4000-8000-000000000001",
        "manifest.deleted",
        "apps/web",
        "v1",
        "user:alice",
        r#"{\"size\":17}"#,
    ] {
        assert!(heard.contains(said), "{said} in {heard}");
    }
    assert!(plugin.observe(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_outcome_too_few_or_too_many_fails_the_whole_batch() {
    for how in ["short", "long"] {
        let plugin = answering(how).await;
        let events = [event(1, EventKind::ManifestPushed)];
        let failed = plugin.observe(&events).await.unwrap_err();
        assert_eq!(failed.failure, Failure::Contract, "{how}: {failed}");
    }
    let failed = answering("fail").await.observe(&[]).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Plugin);
}

#[tokio::test]
async fn a_batch_has_limits_of_its_own() {
    let limits = Limits {
        cpu: Duration::from_millis(50),
        batch_deadline: Duration::from_millis(300),
        ..generous()
    };
    let plugin = doing("sleep", limits).await;
    let failed = plugin.observe(&[event(1, EventKind::TagMoved)]).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.failure, Failure::Deadline);
    assert!(failed.detail.contains("300ms"), "{failed}");
}

#[tokio::test]
async fn whoever_observes_reads_nothing_of_the_registry() {
    let mut source = source(json!({ "do": "keep", "at": "observe" }), generous());
    source.grants = crate::guest::grants();
    let plugin = host().load(source).await.unwrap();
    assert!(plugin.authorize(&authorize()).await.is_ok());
    let failed = plugin.observe(&[]).await.unwrap_err();
    assert!(failed.detail.contains("ReadError::NotGranted"), "{failed}");
}
