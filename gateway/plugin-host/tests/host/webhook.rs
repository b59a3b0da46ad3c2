//! The built-in webhook as the gateway runs it: a component, its grants, and receivers at the other end of a real connection.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use gantry_model::event::{Delivery, Event, EventKind};
use gantry_plugin_host::{Grants, HostPorts, LoadError, Plugin, PluginHost, PluginSource};
use serde_json::{Value, json};

use crate::{
    guest::{self, SECRET, built, generous},
    observe::event,
    wire::{self, Receiver, Wire, status, with},
};

/// A binding of the built-in plugin.
async fn webhook(addresses: &[String], config: Value) -> Result<Plugin, LoadError> {
    let source = PluginSource {
        name: "hooks".into(),
        component: built("gantry-plugin-webhook", "gantry_plugin_webhook.wasm"),
        config,
        grants: Grants {
            http: addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
            ..guest::grants()
        },
        limits: generous(),
        redaction: gantry_plugin_host::Redaction::default(),
    };
    let ports = HostPorts {
        cache_directory: guest::kept(),
        ..wire::ports(&Arc::<Wire>::default())
    };
    PluginHost::new(ports)?.load(source).await
}

fn pushed(number: u32) -> Event {
    event(number, EventKind::ManifestPushed)
}

#[tokio::test]
async fn a_push_arrives_as_a_signed_envelope_with_the_secret_the_plugin_never_saw() {
    let receiver = Receiver::start(|_| status(202, "")).await;
    let url = receiver.url("/api/v4/container_registry_event/events");
    let config = json!({ "endpoints": [{
        "url": url, "headers": { "Authorization": { "secret": "token" } }, "sign_with": "token",
    }] });
    let plugin = webhook(std::slice::from_ref(&url), config).await.unwrap();
    let outcomes = plugin.observe(&[pushed(1)]).await.unwrap();
    assert_eq!(outcomes, [Delivery::Delivered]);
    let got = receiver.got();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].target, "/api/v4/container_registry_event/events");
    assert_eq!(got[0].header("authorization"), SECRET);
    assert_eq!(
        got[0].header("content-type"),
        "application/vnd.docker.distribution.events.v1+json"
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    let mac = aws_lc_rs::hmac::sign(&key, &got[0].body);
    let hex: String = mac
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(got[0].header("x-gantry-signature"), format!("sha256={hex}"));
    let body: Value = serde_json::from_slice(&got[0].body).unwrap();
    assert_eq!(body["events"][0]["action"], "push");
    assert_eq!(body["events"][0]["target"]["repository"], "apps/web");
    assert_eq!(
        body["events"][0]["timestamp"],
        "2023-11-14T22:13:20.123000000Z"
    );
}

#[tokio::test]
async fn each_endpoint_is_a_receiver_that_is_called_alone() {
    let steady = Receiver::start(|_| status(200, "")).await;
    let code = Arc::new(AtomicU16::new(500));
    let says = Arc::clone(&code);
    let shaky = Receiver::start(move |_| status(says.load(Ordering::Relaxed), "")).await;
    let urls = [steady.url("/a"), shaky.url("/b")];
    let config = json!({ "endpoints": [{ "url": urls[0] }, { "url": urls[1] }] });
    let plugin = webhook(&urls, config).await.unwrap();
    let [to_steady, to_shaky] = plugin.receivers() else {
        panic!("{:?}", plugin.receivers())
    };
    let again = Delivery::Retry(std::time::Duration::ZERO);
    let answered = plugin.observe_for(to_shaky, &[pushed(1)]).await;
    assert_eq!(answered.unwrap(), [again]);
    let answered = plugin.observe_for(to_steady, &[pushed(1)]).await;
    assert_eq!(answered.unwrap(), [Delivery::Delivered]);
    code.store(200, Ordering::Relaxed);
    let answered = plugin.observe_for(to_shaky, &[pushed(1)]).await;
    assert_eq!(answered.unwrap(), [Delivery::Delivered]);
    assert_eq!(steady.got().len(), 1);
    assert_eq!(shaky.got().len(), 2);

    let config = json!({ "endpoints": vec![json!({ "url": urls[0] }); 65] });
    let refused = webhook(&urls, config).await.unwrap_err();
    assert!(refused.to_string().contains("at most 64"), "{refused}");
}

#[tokio::test]
async fn a_signature_does_not_follow_to_another_origin() {
    let other = Receiver::start(|_| status(200, "")).await;
    let location = other.url("/hook");
    let receiver = Receiver::start(move |_| with(307, "location", &location)).await;
    let urls = [receiver.url("/hook"), other.url("/hook")];
    let headers = json!({ "X-Secret": { "secret": "token" }, "X-Team": "web" });
    let config =
        json!({ "endpoints": [{ "url": urls[0], "sign_with": "token", "headers": headers }] });
    let plugin = webhook(&urls, config).await.unwrap();
    let outcomes = plugin.observe(&[pushed(1)]).await.unwrap();
    assert_eq!(outcomes, [Delivery::Delivered]);
    let (first, second) = (&receiver.got()[0], &other.got()[0]);
    for name in ["x-gantry-signature", "x-secret", "x-team"] {
        assert_ne!(first.header(name), "", "{name}");
        assert_eq!(second.header(name), "", "{name}");
    }
    assert_eq!(second.header("content-type"), first.header("content-type"));
    assert_eq!(second.body, first.body);
}

#[tokio::test]
async fn a_pause_that_the_receiver_asks_for_reaches_the_gateway() {
    let receiver = Receiver::start(|_| with(429, "retry-after", "120")).await;
    let url = receiver.url("/");
    let config = json!({ "endpoints": [{ "url": url, "format": "cloudevents" }] });
    let plugin = webhook(std::slice::from_ref(&url), config).await.unwrap();
    let pause = || Delivery::Retry(std::time::Duration::from_secs(120));
    let events = [pushed(1), pushed(2), event(3, EventKind::BlobPushed)];
    let outcomes = plugin.observe(&events).await.unwrap();
    assert_eq!(outcomes, [pause(), pause(), Delivery::Delivered]);
    assert_eq!(
        receiver.got().len(),
        1,
        "a receiver that is down is asked once"
    );
}

#[tokio::test]
async fn a_receiver_that_redirects_to_where_it_may_not_gets_nobody_else_told() {
    let inside = Receiver::start(|_| status(200, "")).await;
    for location in [inside.url("/inside"), "http://169.254.169.254/".to_owned()] {
        let to = location.clone();
        let receiver = Receiver::start(move |_| with(307, "location", &to)).await;
        let url = receiver.url("/hook");
        let config = json!({ "endpoints": [{ "url": url, "headers": { "Authorization": { "secret": "token" } } }] });
        let plugin = webhook(std::slice::from_ref(&url), config);
        let outcomes = plugin.await.unwrap().observe(&[pushed(1)]).await.unwrap();
        assert_eq!(outcomes, [Delivery::Retry(std::time::Duration::ZERO)]);
        assert_eq!(receiver.got().len(), 1, "{location}");
    }
    assert!(inside.got().is_empty());
}

#[tokio::test]
async fn an_endpoint_without_its_grants_is_said_at_load_or_retried() {
    let receiver = Receiver::start(|_| status(200, "")).await;
    let url = receiver.url("/");
    let config = json!({ "endpoints": [{ "url": url, "sign_with": "nowhere" }] });
    let refused = webhook(std::slice::from_ref(&url), config)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("nowhere is not granted"),
        "{refused}"
    );
    let plugin = webhook(&[], json!({ "endpoints": [{ "url": url }] }))
        .await
        .unwrap();
    let outcomes = plugin.observe(&[pushed(1)]).await.unwrap();
    assert_eq!(outcomes, [Delivery::Retry(std::time::Duration::ZERO)]);
    assert!(receiver.got().is_empty());
}
