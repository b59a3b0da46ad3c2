//! The list of referrers is complete, never lies, and is never a 404.

use std::{sync::Arc, time::Duration};

use gantry_model::{AdmissionRequest, Admitted, Change, Refusal, media_type::OCI_MANIFEST};
use gantry_registry::Error;
use serde_json::{Value, json};

use crate::harness::{
    Client, Content, Hooks, World, artifact, denied, image, image_document, index, sha256,
};

const REPOSITORY: &str = "apps/web";

async fn push(client: &Client, reference: &str, content: &Content) {
    client.push(REPOSITORY, reference, content).await.unwrap();
}

fn digests(index: &Value) -> Vec<String> {
    let manifests = index["manifests"].as_array().expect("a list");
    manifests
        .iter()
        .map(|manifest| manifest["digest"].as_str().expect("a digest").to_owned())
        .collect()
}

#[tokio::test]
async fn referrers_are_listed_with_type_and_annotations_and_filtered() {
    let world = World::new();
    let alice = world.client("alice");
    let subject = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    let signature = artifact("{}", "application/x.signature", &subject);
    let sbom = artifact("{}", "application/x.sbom", &subject);
    for referrer in [&signature, &sbom] {
        push(&alice, referrer.digest.as_str(), referrer).await;
    }
    let listed = alice.referrers(REPOSITORY, &subject.digest, None).await;
    let (listed, filtered) = listed.unwrap();
    assert!(!filtered);
    assert_eq!(listed["schemaVersion"], 2);
    assert_eq!(
        listed["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    let mut expect = [&signature, &sbom].map(|content| content.digest.to_string());
    expect.sort();
    assert_eq!(digests(&listed), expect);
    let wanted = Some("application/x.sbom");
    let (listed, filtered) = alice
        .referrers(REPOSITORY, &subject.digest, wanted)
        .await
        .unwrap();
    assert!(filtered);
    assert_eq!(
        listed["manifests"],
        json!([{
            "mediaType": OCI_MANIFEST,
            "digest": sbom.digest.to_string(),
            "size": sbom.bytes.len(),
            "artifactType": "application/x.sbom",
            "annotations": { "kind": "application/x.sbom" },
        }])
    );
}

#[tokio::test]
async fn an_unknown_digest_or_repository_has_an_empty_list() {
    let world = World::new();
    let alice = world.client("alice");
    alice.push_image(REPOSITORY, "v1", "one").await;
    for repository in [REPOSITORY, "apps/none"] {
        let unknown = sha256(b"unknown");
        let (listed, _) = alice.referrers(repository, &unknown, None).await.unwrap();
        assert_eq!(listed["manifests"], json!([]));
    }
}

#[tokio::test]
async fn a_deleted_referrer_is_not_listed() {
    let world = World::new();
    let alice = world.client("alice");
    let subject = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    let signature = artifact("{}", "application/x.signature", &subject);
    push(&alice, signature.digest.as_str(), &signature).await;
    alice
        .delete_manifest(REPOSITORY, &signature.digest)
        .await
        .unwrap();
    let listed = alice.referrers(REPOSITORY, &subject.digest, None).await;
    assert_eq!(listed.unwrap().0["manifests"], json!([]));
}

#[tokio::test]
async fn the_fallback_tags_list_is_folded_in_as_far_as_it_is_true() {
    let world = World::new();
    let alice = world.client("alice");
    let subject = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    let linked = artifact("{}", "application/x.signature", &subject);
    push(&alice, linked.digest.as_str(), &linked).await;
    let mut document = image_document("{}", &[]);
    document["artifactType"] = json!("application/x.old");
    let old = Content::new(OCI_MANIFEST, &document);
    push(&alice, old.digest.as_str(), &old).await;
    let absent = image("{}", &["absent"]);
    let fallback = index(&[&old, &linked, &absent]);
    let tag = format!("sha256-{}", subject.digest.hex());
    push(&alice, &tag, &fallback).await;
    let listed = alice.referrers(REPOSITORY, &subject.digest, None).await;
    let mut expect = [&old, &linked].map(|content| content.digest.to_string());
    expect.sort();
    assert_eq!(digests(&listed.unwrap().0), expect);
    let wanted = Some("application/x.old");
    let listed = alice.referrers(REPOSITORY, &subject.digest, wanted).await;
    assert_eq!(digests(&listed.unwrap().0), [old.digest.to_string()]);
}

#[tokio::test]
async fn a_fallback_tag_that_names_an_image_lists_nothing() {
    let world = World::new();
    let alice = world.client("alice");
    let subject = alice.push_image(REPOSITORY, "v1", "one").await;
    let tag = format!("sha256-{}", subject.digest.hex());
    push(&alice, &tag, &subject).await;
    let listed = alice.referrers(REPOSITORY, &subject.digest, None).await;
    assert_eq!(listed.unwrap().0["manifests"], json!([]));
}

/// A world whose policy judges served manifests, with a subject, a signature, and an SBOM.
async fn judged(
    judge: impl Fn(&AdmissionRequest) -> Result<Admitted, Refusal> + Send + Sync + 'static,
) -> (World, Arc<Hooks>, Content) {
    let hooks = Arc::new(Hooks::on(&[Change::ServeManifest], judge));
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let subject = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    for kind in ["application/x.signature", "application/x.sbom"] {
        let referrer = artifact("{}", kind, &subject);
        push(&alice, referrer.digest.as_str(), &referrer).await;
    }
    (world, hooks, subject)
}

fn is_sbom(request: &AdmissionRequest) -> bool {
    request.target.as_ref().unwrap().artifact_type.as_deref() == Some("application/x.sbom")
}

#[tokio::test]
async fn a_referrer_that_would_not_be_served_is_not_listed() {
    let (world, hooks, subject) = judged(|request| match is_sbom(request) {
        true => Err(denied("private")),
        false => Ok(Admitted::default()),
    })
    .await;
    let alice = world.client("alice");
    let document = {
        let mut document = image_document("{}", &[]);
        document["artifactType"] = json!("application/x.sbom");
        document
    };
    let old = Content::new(OCI_MANIFEST, &document);
    push(&alice, old.digest.as_str(), &old).await;
    let tag = format!("sha256-{}", subject.digest.hex());
    push(&alice, &tag, &index(&[&old])).await;
    let (listed, _) = alice
        .referrers(REPOSITORY, &subject.digest, None)
        .await
        .unwrap();
    let signature = artifact("{}", "application/x.signature", &subject);
    assert_eq!(digests(&listed), [signature.digest.to_string()]);
    assert!(!listed.to_string().contains("sbom"), "{listed}");
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|asked| asked.manifest.is_some()));
    let wanted = Some("application/x.sbom");
    let (listed, filtered) = alice
        .referrers(REPOSITORY, &subject.digest, wanted)
        .await
        .unwrap();
    assert!(filtered);
    assert_eq!(listed["manifests"], json!([]));
    assert_eq!(hooks.take_seen().len(), 2, "the others were not asked for");
}

#[tokio::test]
async fn a_list_says_nothing_while_one_of_it_is_not_decided() {
    let (world, _, subject) = judged(|request| match is_sbom(request) {
        true => Err(Refusal::Held {
            retry_after: Duration::from_secs(7),
            reason: "being scanned".to_owned(),
            plugin: "scan".into(),
        }),
        false => Ok(Admitted::default()),
    })
    .await;
    let listed = world.client("alice");
    let listed = listed.referrers(REPOSITORY, &subject.digest, None).await;
    assert!(matches!(listed, Err(Error::Held { .. })), "{listed:?}");
}
