//! Nothing of one call reaches the next, whatever became of it.

use gantry_model::Reason;
use gantry_plugin_host::{AuthorizeAnswer, Failure, Plugin};
use serde_json::json;

use crate::guest::{authorize, doing, generous, host, source};

/// What the guest told as its reason.
pub(crate) async fn told(plugin: &Plugin) -> String {
    match plugin.authorize(&authorize()).await.unwrap() {
        AuthorizeAnswer::Allow(grant, _) => grant.reason.text.to_string(),
        AuthorizeAnswer::Abstain(Some(Reason { text, .. })) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_counter_in_the_guest_is_always_one() {
    let plugin = doing("count", generous()).await;
    for _ in 0..100 {
        assert_eq!(told(&plugin).await, "1");
    }
}

#[tokio::test]
async fn nothing_left_in_memory_is_ever_seen_again() {
    let plugin = doing("canary", generous()).await;
    for call in 0..8 {
        let seen: usize = told(&plugin).await.parse().unwrap();
        // The pattern that is looked for is itself in memory, with perhaps a copy on the stack; what was left are 262,144.
        assert!(seen <= 4, "call {call} saw {seen}");
    }
}

/// Begins a call and drops it as soon as its instance is alive.
async fn drop_in_flight(plugin: &Plugin) {
    let calling = plugin.clone();
    let call = tokio::spawn(async move { calling.authorize(&authorize()).await });
    while plugin.stats().live_count == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(plugin.stats().live_count, 0);
}

#[tokio::test]
async fn a_call_dropped_in_flight_leaves_a_plugin_that_works() {
    let source = |what: &str| {
        let mut source = source(json!({ "do": what }), generous());
        source.grants = crate::guest::grants();
        source
    };
    let host = host();
    let blocked = host.load(source("kv-block")).await.unwrap();
    let looping = host.load(source("loop")).await.unwrap();
    for _ in 0..20 {
        drop_in_flight(&blocked).await;
        drop_in_flight(&looping).await;
    }
    let counting = host.load(source("count")).await.unwrap();
    for _ in 0..1000 {
        assert_eq!(told(&counting).await, "1");
    }
    assert_eq!(counting.stats().answered_count, 1000);
}

#[tokio::test]
async fn a_plugin_works_between_its_failures() {
    let host = host();
    let trapping = host.load(source(json!({ "do": "trap" }), generous()));
    let counting = host.load(source(json!({ "do": "count" }), generous()));
    let (trapping, counting) = (trapping.await.unwrap(), counting.await.unwrap());
    for _ in 0..200 {
        let failed = trapping.authorize(&authorize()).await.unwrap_err();
        assert_eq!(failed.failure, Failure::Trap);
        assert_eq!(told(&counting).await, "1");
    }
    assert_eq!(trapping.stats().failed(Failure::Trap), 200);
}
