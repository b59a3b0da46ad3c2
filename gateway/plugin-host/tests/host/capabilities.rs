//! A guest reaches what its binding grants, and nothing of the machine.

use std::sync::Arc;

use gantry_plugin_host::{Failure, HostPorts, Plugin, PluginHost, Secret};
use serde_json::{Value, json};

use crate::{
    guest::{self, authenticate, authorize, doing, generous, source},
    isolation::told,
    ports::{self, CONTENT, Memory, NOW_MS},
};

async fn report(plugin: &Plugin) -> Value {
    let told = told(plugin).await;
    // A reason's text is cut at 1024 bytes; a report is shorter.
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[tokio::test]
async fn without_grants_every_import_answers_its_own_refusal() {
    let plugin = guest::load(json!({ "do": "probe" })).await.unwrap();
    let report = report(&plugin).await;
    for (import, answer) in [
        ("kv", "Err(KvError::NotGranted)"),
        ("hmac", "Err(\"the secret is not granted\")"),
        ("resolve-tag", "Err(ReadError::NotGranted)"),
        ("get-manifest", "Err(ReadError::NotGranted)"),
        ("referrers", "Err(ReadError::NotGranted)"),
        ("open-blob", "Err(ReadError::NotGranted)"),
        ("jwt", "Err(JwtError::Malformed)"),
    ] {
        assert_eq!(report[import], answer, "{import}");
    }
    let secret = report["secret"].as_str().unwrap();
    assert!(secret.contains("not-granted"), "{secret}");
    let http = report["http"].as_str().unwrap();
    assert!(http.starts_with("Err(Error::NotAllowed("), "{http}");
    assert!(http.contains("not granted"), "{http}");
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(report["sha256"], abc);
    assert_eq!(report["equal"], true);
    assert_eq!(report["random"], true);
    assert_eq!(report["clock"], NOW_MS);
    let remaining = report["remaining"].as_u64().unwrap();
    assert!((1..=30_000).contains(&remaining), "{remaining}");
    assert_eq!(report["config"], "{\"do\":\"probe\"}");
}

#[tokio::test]
async fn what_is_granted_works_within_its_bounds() {
    let report = report(&doing("keep", generous()).await).await;
    assert_eq!(report["lost"], Value::Null, "the key was there");
    assert_eq!(report["won"], true);
    assert_eq!(report["value"], "three");
    assert_eq!(report["absent"], true);
    assert_eq!(report["gone"], true);
    assert_eq!(report["counted"], "(Ok(2), Ok(5))");
    assert_eq!(report["large"], "Err(KvError::TooLarge)");
    assert_eq!(report["long"], "Err(KvError::TooLarge)");
    assert_eq!(report["referrers"], 1);
    assert_eq!(report["opaque"], true, "{CONTENT} is no manifest");
    assert_eq!(report["digests"], 3, "its two and the one it is stored by");
    assert_eq!(report["part"], CONTENT.get(2..5).unwrap());
    assert_eq!(report["beyond"], 0);
    assert_eq!(report["greedy"], "Err(ReadError::TooLarge)");
    assert_eq!(report["elsewhere"], "Err(ReadError::NotGranted)");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, guest::SECRET.as_bytes());
    let expected: String = aws_lc_rs::hmac::sign(&key, b"data")
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(report["hmac"], expected.as_str());
}

#[tokio::test]
async fn an_authenticator_reads_nothing_of_the_registry() {
    // The same calls that work in an authorizer: nobody asks yet, so there is nobody to read as.
    let plugin = doing("keep", generous()).await;
    let failed = plugin.authenticate(&authenticate()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Trap);
    assert!(failed.detail.contains("ReadError::NotGranted"), "{failed}");
}

#[tokio::test]
async fn a_full_bucket_refuses_writes() {
    let ports = HostPorts {
        kv: Arc::new(Memory::holding(16 << 20)),
        ..ports::ports()
    };
    let mut source = source(json!({ "do": "keep" }), generous());
    source.grants = guest::grants();
    let plugin = PluginHost::new(ports).unwrap().load(source).await.unwrap();
    let failed = plugin.authorize(&authorize()).await.unwrap_err();
    assert!(failed.detail.contains("KvError::Quota"), "{failed}");
}

#[tokio::test]
async fn a_secrets_bytes_are_given_only_with_the_grant_for_them() {
    let mut source = source(json!({ "do": "reveal" }), generous());
    source.grants = guest::grants();
    let refused = guest::host().load(source.clone()).await.unwrap();
    let failed = refused.authorize(&authorize()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Contract);
    assert!(failed.detail.contains("secret_reveal"), "{failed}");
    source.grants.secret_reveal = true;
    let granted = guest::host().load(source).await.unwrap();
    assert_eq!(told(&granted).await, guest::SECRET);
}

#[tokio::test]
async fn the_machine_is_not_there() {
    let plugin = doing("machine", generous()).await;
    let nothing = json!({
        "environment": 0, "arguments": 0, "file": false, "directory": false, "write": false,
        "socket": false, "listen": false, "name": false, "input": 0, "clock": NOW_MS,
    });
    assert_eq!(report(&plugin).await, nothing);
}

#[tokio::test]
async fn secrets_never_show_in_debug() {
    let mut source = source(json!({ "users": guest::SECRET }), generous());
    source.grants = guest::grants();
    let shown = format!(
        "{source:?} {:?}",
        Secret(Arc::from(guest::SECRET.as_bytes()))
    );
    assert!(!shown.contains(guest::SECRET));
    let plugin = guest::host().load(source).await.unwrap();
    assert!(!format!("{plugin:?}").contains(guest::SECRET));
}
