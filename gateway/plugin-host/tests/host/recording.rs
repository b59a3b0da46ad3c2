//! A recording tells a plugin's author what the guest asked of the host, and tells nobody a secret.

use std::sync::Arc;

use gantry_plugin_host::{Grants, HostCall, HostPorts, HttpGrant, Plugin, PluginHost, Recorder};
use serde_json::{Value, json};

use crate::{
    guest::{self, SECRET, authorize, generous, source},
    wire::{self, Receiver, Wire, status},
};

const PASSWORD: &str = "correct horse battery";

/// A recorded guest with everything granted.
async fn recorded(config: Value) -> (Plugin, Recorder) {
    with_ports(config, guest::grants(), crate::ports::ports()).await
}

async fn with_ports(config: Value, grants: Grants, ports: HostPorts) -> (Plugin, Recorder) {
    let recorder = Recorder::default();
    let ports = HostPorts {
        cache_directory: guest::kept(),
        ..ports
    };
    let host = PluginHost::new(ports).unwrap();
    let mut source = source(config, generous());
    source.grants = grants;
    let plugin = host.recording(recorder.clone()).load(source).await.unwrap();
    (plugin, recorder)
}

/// What one decision asks of the host; whether it is made does not matter.
async fn calls(plugin: &Plugin, recorder: &Recorder) -> Vec<HostCall> {
    recorder.start();
    let _decided_or_not = plugin.authorize(&authorize()).await;
    recorder.finish()
}

fn shown(calls: &[HostCall]) -> Vec<String> {
    let line = |call: &HostCall| format!("{}({}) -> {}", call.name, call.arguments, call.answer);
    calls.iter().map(line).collect()
}

#[tokio::test]
async fn every_call_is_noted_in_order_with_what_it_answered() {
    let (plugin, recorder) = recorded(json!({ "do": "keep" })).await;
    let calls = shown(&calls(&plugin, &recorder).await);
    let digest = crate::ports::digest();
    let long = "k".repeat(119);
    for (index, expected) in [
        "kv.open(\"granted\") -> bucket".to_owned(),
        "kv.bucket.put(\"key\", 3 bytes, Some(60000)) -> 1".to_owned(),
        "kv.bucket.compare-and-put(\"key\", None, 3 bytes, None) -> None".to_owned(),
        "kv.bucket.compare-and-put(\"key\", Some(1), 5 bytes, None) -> Some(2)".to_owned(),
        "kv.bucket.get(\"key\") -> 5 bytes".to_owned(),
        "kv.bucket.get(\"absent\") -> none".to_owned(),
        "kv.bucket.increment(\"count\", 2, 1000) -> 2".to_owned(),
        "kv.bucket.increment(\"count\", 3, 1000) -> 5".to_owned(),
        "kv.bucket.put(\"large\", 65537 bytes, None) -> KvError::TooLarge".to_owned(),
        format!("kv.bucket.put(\"{long}…, 0 bytes, None) -> KvError::TooLarge"),
        "kv.bucket.delete(\"key\") -> done".to_owned(),
        "kv.bucket.get(\"key\") -> none".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(calls[index], expected);
    }
    let rest = calls[12..].join("\n");
    for expected in [
        "registry.resolve-tag((\"apps/web\", \"v1\")) -> Some(TagState { digest: \"sha256:abab"
            .to_owned(),
        format!("registry.get-manifest((\"apps/web\", \"{digest}\")) -> "),
        format!("registry.open-blob((\"apps/web\", \"{digest}\")) -> blob"),
        "registry.blob-reader.read(2, 3) -> 3 bytes".to_owned(),
        "registry.blob-reader.read(16, 10) -> 0 bytes".to_owned(),
        "registry.blob-reader.read(0, 262145) -> ReadError::TooLarge".to_owned(),
        "crypto.hmac-sha256(\"token\", 4 bytes) -> 32 bytes".to_owned(),
        "-> 1 found".to_owned(),
        "registry.resolve-tag((\"other/web\", \"v1\")) -> ReadError::NotGranted".to_owned(),
    ] {
        assert!(rest.contains(&expected), "no {expected} in:\n{rest}");
    }
}

#[tokio::test]
async fn a_secret_that_is_revealed_is_not_shown() {
    let grants = Grants {
        secret_reveal: true,
        ..guest::grants()
    };
    let config = json!({ "do": "reveal" });
    let (plugin, recorder) = with_ports(config, grants, crate::ports::ports()).await;
    assert_eq!(
        shown(&calls(&plugin, &recorder).await),
        [
            "config.secret(\"token\") -> ***",
            "config.secret-ref.reveal() -> ***"
        ]
    );
}

#[tokio::test]
async fn what_a_call_is_stopped_by_is_its_answer() {
    let (plugin, recorder) = recorded(json!({ "do": "reveal" })).await;
    let calls = shown(&calls(&plugin, &recorder).await);
    let last = calls.last().unwrap();
    assert!(
        last.starts_with("config.secret-ref.reveal() -> stopped: "),
        "{last}"
    );
    assert!(last.contains("secret_reveal"), "{last}");
}

#[tokio::test]
async fn passwords_and_tokens_are_not_shown() {
    let config = json!({ "do": "password", "password": PASSWORD, "stored": null });
    let (plugin, recorder) = recorded(config).await;
    assert_eq!(
        shown(&calls(&plugin, &recorder).await),
        ["crypto.verify-password(none, ***) -> PasswordResult::Mismatch"]
    );
    let (plugin, recorder) = recorded(json!({ "do": "probe" })).await;
    let calls = shown(&calls(&plugin, &recorder).await);
    let starting = |name: &str| {
        let mut found = calls.iter().filter(|call| call.starts_with(name));
        found
            .next()
            .unwrap_or_else(|| panic!("no {name} in {calls:?}"))
    };
    let jwt = starting("crypto.verify-jwt(***, issuer \"issuer\", audiences [\"audience\"])");
    assert!(!jwt.contains("a.b.c"), "{jwt}");
    assert_eq!(
        starting("crypto.constant-time-eq"),
        "crypto.constant-time-eq(***, ***) -> true"
    );
    assert_eq!(starting("random.bytes"), "random.bytes(16) -> 16 bytes");
    assert_eq!(starting("config.get"), "config.get() -> 14 bytes");
    let secret = starting("config.secret(\"other\") -> ");
    assert!(secret.contains("not-granted"), "{secret}");
}

#[tokio::test]
async fn of_a_request_neither_query_nor_values_of_headers_nor_bodies_are_shown() {
    let wire = Arc::<Wire>::default();
    let receiver = Receiver::start(|_received| status(201, "a private answer")).await;
    let requests = json!([{
        "method": "POST", "url": receiver.url("/in/x?token=in-the-query"), "body": "a private body",
        "headers": [["X-Key", "a private value"], ["Authorization", { "secret": "token" }]],
    }]);
    let grants = Grants {
        http: vec![receiver.url("/in").parse::<HttpGrant>().unwrap()],
        ..guest::grants()
    };
    let config = json!({ "do": "http", "requests": requests });
    let (plugin, recorder) = with_ports(config, grants, wire::ports(&wire)).await;
    let calls = calls(&plugin, &recorder).await;
    let url = receiver.url("/in/x");
    assert_eq!(
        shown(&calls),
        [format!(
            "http.send(POST {url}, headers [\"X-Key\", \"Authorization\"], 14 bytes) -> 201, 16 bytes"
        )]
    );
    let everything = format!("{calls:?}");
    for private in ["private", "in-the-query", SECRET] {
        assert!(!everything.contains(private), "{everything}");
    }
}

#[tokio::test]
async fn a_line_is_shown_as_the_guest_wrote_it_on_one_line() {
    let (plugin, recorder) = recorded(json!({ "do": "secret-log" })).await;
    let calls = shown(&calls(&plugin, &recorder).await);
    let line = calls
        .iter()
        .find(|call| call.starts_with("logging.log("))
        .unwrap();
    assert!(
        line.starts_with("logging.log(Level::Error, \"a line\\nwith a "),
        "{line}"
    );
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(!line.contains(SECRET), "{line}");
}

#[tokio::test]
async fn only_what_happens_between_start_and_finish_is_noted() {
    let (plugin, recorder) = recorded(json!({ "do": "keep" })).await;
    assert!(recorder.finish().is_empty(), "loading is not listened to");
    plugin.authorize(&authorize()).await.unwrap();
    assert!(recorder.finish().is_empty(), "nobody listened");
    let first = calls(&plugin, &recorder).await.len();
    assert!(first > 12, "{first}");
    plugin.authorize(&authorize()).await.unwrap();
    assert_eq!(
        calls(&plugin, &recorder).await.len(),
        first,
        "a start forgets"
    );
    assert!(recorder.finish().is_empty());
}
