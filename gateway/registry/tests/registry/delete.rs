//! A deletion takes exactly what was named, after everything that protects it was asked.

use std::sync::Arc;

use gantry_model::{Admitted, Change};
use gantry_registry::{Error, Outcome, Settings};

use crate::harness::{Hooks, World, denied, page, sha256};

const REPOSITORY: &str = "apps/web";

#[tokio::test]
async fn a_deleted_tag_leaves_its_manifest_and_the_other_tags() {
    let world = World::new();
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push(REPOSITORY, "v2", &image).await.unwrap();
    let deleted = alice.delete_tag(REPOSITORY, "v1").await.unwrap();
    assert!(matches!(deleted, Outcome::Deleted));
    let error = alice.pull(REPOSITORY, "v1").await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
    alice.pull(REPOSITORY, "v2").await.unwrap();
    let error = alice.delete_tag(REPOSITORY, "v1").await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
}

#[tokio::test]
async fn a_deleted_manifest_takes_all_its_tags() {
    let world = World::new();
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push(REPOSITORY, "v2", &image).await.unwrap();
    alice.push_image(REPOSITORY, "other", "two").await;
    alice
        .delete_manifest(REPOSITORY, &image.digest)
        .await
        .unwrap();
    let (tags, _) = alice.tags(REPOSITORY, page(None, None)).await.unwrap();
    assert_eq!(tags, ["other"]);
    let again = alice.delete_manifest(REPOSITORY, &image.digest).await;
    assert!(matches!(again, Err(Error::ManifestUnknown)), "{again:?}");
}

#[tokio::test]
async fn a_manifest_with_more_tags_than_a_page_goes_with_all_of_them() {
    let world = World::new();
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    let tags: Vec<String> = (0..1500).map(|number| format!("t{number}")).collect();
    for tags in tags.chunks(500) {
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let digest = image.digest.as_str();
        alice
            .push_tagged(REPOSITORY, digest, &tags, &image)
            .await
            .unwrap();
    }
    alice
        .delete_manifest(REPOSITORY, &image.digest)
        .await
        .unwrap();
    let (tags, _) = alice.tags(REPOSITORY, page(None, None)).await.unwrap();
    assert!(tags.is_empty());
}

#[tokio::test]
async fn a_deleted_blob_is_gone_from_its_repository_alone() {
    let world = World::new();
    let alice = world.client("alice");
    let digest = alice.push_blob(REPOSITORY, b"blob").await.unwrap();
    alice.push_blob("apps/api", b"blob").await.unwrap();
    alice.delete_blob(REPOSITORY, &digest).await.unwrap();
    let error = alice.head_blob(REPOSITORY, &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    alice.head_blob("apps/api", &digest).await.unwrap();
    let error = alice.delete_blob(REPOSITORY, &digest).await.unwrap_err();
    assert!(
        matches!(&error, Error::BlobUnknown { digest: told } if *told == digest),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_blob_that_a_manifest_names_is_deleted_after_the_manifest_only() {
    let world = World::new();
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    for blob in [b"layer of one".as_slice(), b"config of one"] {
        let refused = alice.delete_blob(REPOSITORY, &sha256(blob)).await;
        let Err(Error::Unsupported(message)) = &refused else {
            panic!("{refused:?}");
        };
        assert!(message.contains(image.digest.as_str()), "{message}");
        alice.head_blob(REPOSITORY, &sha256(blob)).await.unwrap();
    }
    let deleted = alice.delete_manifest(REPOSITORY, &image.digest).await;
    deleted.unwrap();
    for blob in [b"layer of one".as_slice(), b"config of one"] {
        let deleted = alice.delete_blob(REPOSITORY, &sha256(blob)).await;
        deleted.unwrap();
    }
}

#[tokio::test]
async fn what_is_unknown_cannot_be_deleted() {
    let world = World::new();
    let alice = world.client("alice");
    let digest = sha256(b"unknown");
    let error = alice.delete_manifest(REPOSITORY, &digest).await;
    assert!(matches!(error, Err(Error::NameUnknown)), "{error:?}");
    let error = alice.delete_tag(REPOSITORY, "v1").await;
    assert!(matches!(error, Err(Error::NameUnknown)), "{error:?}");
}

#[tokio::test]
async fn every_deletion_is_off_when_deleting_is_disabled() {
    let settings = Settings {
        delete_enabled: false,
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    let layer = sha256(b"layer of one");
    for refused in [
        alice.delete_tag(REPOSITORY, "v1").await,
        alice.delete_manifest(REPOSITORY, &image.digest).await,
        alice.delete_blob(REPOSITORY, &layer).await,
    ] {
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    }
    alice.pull(REPOSITORY, "v1").await.unwrap();
    alice.head_blob(REPOSITORY, &layer).await.unwrap();
}

#[tokio::test]
async fn a_protected_tag_protects_its_manifest() {
    let changes = [Change::DeleteManifest, Change::DeleteTag];
    let hooks = Hooks::on(&changes, |request| {
        let protected = request.tag.as_ref().is_some_and(|tag| tag.as_str() == "v1");
        match request.change {
            Change::DeleteTag if protected => Err(denied("protected")),
            _ => Ok(Admitted::default()),
        }
    });
    let hooks = Arc::new(hooks);
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push(REPOSITORY, "latest", &image).await.unwrap();
    hooks.take_seen();
    let error = alice.delete_manifest(REPOSITORY, &image.digest).await;
    assert!(matches!(error, Err(Error::Denied(_))), "{error:?}");
    let asked: Vec<_> = hooks
        .take_seen()
        .into_iter()
        .map(|request| (request.change, request.tag.map(|tag| tag.to_string())))
        .collect();
    assert_eq!(
        asked,
        [
            (Change::DeleteManifest, None),
            (Change::DeleteTag, Some("latest".to_owned())),
            (Change::DeleteTag, Some("v1".to_owned())),
        ]
    );
    let error = alice.delete_tag(REPOSITORY, "v1").await;
    assert!(matches!(error, Err(Error::Denied(_))), "{error:?}");
    alice.delete_tag(REPOSITORY, "latest").await.unwrap();
    alice.pull(REPOSITORY, "v1").await.unwrap();
}

#[tokio::test]
async fn the_deletion_of_a_blob_that_no_manifest_names_is_admitted_first() {
    let hooks = Hooks::on(&[Change::DeleteBlob], |request| {
        match request.requester.principal.id.as_str() {
            "alice" => Ok(Admitted::default()),
            _ => Err(denied("kept")),
        }
    });
    let hooks = Arc::new(hooks);
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let (alice, bob) = (world.client("alice"), world.client("bob"));
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    let layer = sha256(b"layer of one");
    let named = alice.delete_blob(REPOSITORY, &layer).await;
    assert!(matches!(named, Err(Error::Unsupported(_))), "{named:?}");
    let missing = alice.delete_blob(REPOSITORY, &sha256(b"missing")).await;
    assert!(
        matches!(missing, Err(Error::BlobUnknown { .. })),
        "{missing:?}"
    );
    assert!(hooks.take_seen().is_empty(), "neither can be deleted");

    alice
        .delete_manifest(REPOSITORY, &image.digest)
        .await
        .unwrap();
    let rejected = bob.delete_blob(REPOSITORY, &layer).await;
    assert!(matches!(rejected, Err(Error::Denied(_))), "{rejected:?}");
    bob.head_blob(REPOSITORY, &layer).await.unwrap();
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].change, Change::DeleteBlob);
    let target = asked[0].target.as_ref().unwrap();
    assert_eq!((&target.digest, target.size), (&layer, 12));

    alice.delete_blob(REPOSITORY, &layer).await.unwrap();
    let gone = bob.head_blob(REPOSITORY, &layer).await;
    assert!(matches!(gone, Err(Error::BlobUnknown { .. })), "{gone:?}");
}
