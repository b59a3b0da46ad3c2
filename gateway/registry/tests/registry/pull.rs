//! What is pulled is what was pushed, or a 404 that says which of the two is unknown.

use std::sync::Arc;

use gantry_model::Digest;
use gantry_registry::{BlobContent, Error, Settings};
use gantry_storage::{FsBlobStore, MemoryMetadata};

use crate::harness::{World, bytes_of, hosted, name, sha256, stores};

#[tokio::test]
async fn an_unknown_repository_and_an_unknown_manifest_are_told_apart() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_image("apps/web", "v1", "one").await;
    let unknown = sha256(b"unknown").to_string();
    for reference in ["v2", unknown.as_str()] {
        let error = alice.pull("apps/web", reference).await.unwrap_err();
        assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
        let error = alice.pull("apps/none", reference).await.unwrap_err();
        assert!(matches!(error, Error::NameUnknown), "{error:?}");
    }
}

#[tokio::test]
async fn a_manifest_is_pulled_only_from_the_repository_that_has_it() {
    let world = World::new();
    let alice = world.client("user:alice");
    let image = alice.push_image("apps/web", "v1", "one").await;
    alice.push_image("apps/api", "v1", "two").await;
    let digest = image.digest.to_string();
    let error = alice.pull("apps/api", &digest).await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
}

#[tokio::test]
async fn a_blob_is_pulled_only_from_the_repository_that_has_it() {
    let world = World::new();
    let alice = world.client("user:alice");
    let digest = alice.push_blob("apps/web", b"bytes").await.unwrap();
    let served = alice.pull_blob("apps/web", &digest, None).await.unwrap();
    assert_eq!(bytes_of(&served).await, "bytes");
    assert_eq!((served.size, served.range), (Some(5), None));
    for unknown in [("apps/api", &digest), ("apps/web", &sha256(b"other"))] {
        let (repository, digest) = unknown;
        let error = alice.pull_blob(repository, digest, None).await.unwrap_err();
        assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
        let error = alice.head_blob(repository, digest).await.unwrap_err();
        assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn ranges_are_cut_to_the_blob_and_put_together_again() {
    let world = World::new();
    let alice = world.client("user:alice");
    let digest = alice.push_blob("apps/web", b"0123456789").await.unwrap();
    for (range, expect) in [
        ("0-3", "0123"),
        ("4-", "456789"),
        ("-2", "89"),
        ("8-99", "89"),
        ("-99", "0123456789"),
    ] {
        let served = alice
            .pull_blob("apps/web", &digest, Some(range))
            .await
            .unwrap();
        assert_eq!(bytes_of(&served).await, expect, "{range}");
        assert_eq!(served.size, Some(10));
        assert!(served.range.is_some());
    }
    let error = alice
        .pull_blob("apps/web", &digest, Some("10-"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::RangeUnsatisfiable { size: 10 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn headers_say_what_the_body_would_and_ignore_ranges() {
    let world = World::new();
    let alice = world.client("user:alice");
    let digest = alice.push_blob("apps/web", b"0123456789").await.unwrap();
    let head = alice.head_blob("apps/web", &digest).await.unwrap();
    assert!(matches!(head.content, BlobContent::HeadersOnly));
    assert_eq!(head.size, Some(10));
    let operation = gantry_model::Operation::PullBlob {
        repository: hosted("apps/web"),
        digest,
        range: Some("99-".parse().unwrap()),
        body: false,
    };
    let body = gantry_registry::Body::empty();
    alice.perform(operation, body).await.unwrap();
}

#[tokio::test]
async fn the_empty_blob_is_a_blob() {
    let world = World::new();
    let alice = world.client("user:alice");
    let digest = alice.push_blob("apps/web", b"").await.unwrap();
    let served = alice.pull_blob("apps/web", &digest, None).await.unwrap();
    assert_eq!((served.size, bytes_of(&served).await.len()), (Some(0), 0));
    let error = alice
        .pull_blob("apps/web", &digest, Some("0-"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::RangeUnsatisfiable { size: 0 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_blob_that_lost_its_bytes_is_unknown_until_it_is_pushed_again() {
    let world = World::new();
    let alice = world.client("user:alice");
    let digest = alice.push_blob("apps/web", b"bytes").await.unwrap();
    world.ports.blobs.delete(&digest).await.unwrap();
    let error = alice.head_blob("apps/web", &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    let error = alice.pull_blob("apps/web", &digest, None).await;
    assert!(matches!(error, Err(Error::BlobUnknown { .. })));
    alice.push_blob("apps/web", b"bytes").await.unwrap();
    let served = alice.pull_blob("apps/web", &digest, None).await.unwrap();
    assert_eq!(bytes_of(&served).await, "bytes");
}

#[tokio::test]
async fn a_manifest_that_lost_its_bytes_is_our_fault() {
    let world = World::new();
    let image = world.client("a").push_image("apps/web", "v1", "one").await;
    world.ports.blobs.delete(&image.digest).await.unwrap();
    let world = world.restarted();
    let error = world.client("a").pull("apps/web", "v1").await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
}

#[tokio::test]
async fn changed_bytes_of_a_manifest_are_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Arc::new(FsBlobStore::open(folder.path()).unwrap());
    let ports = stores(blobs, &Arc::new(MemoryMetadata::new()));
    let world = World::on(ports, Settings::default());
    let image = world.client("a").push_image("apps/web", "v1", "one").await;
    let world = world.restarted();
    let hex = image.digest.hex();
    let path = format!("docker/registry/v2/blobs/sha256/{hex:.2}/{hex}/data");
    let path = folder.path().join(path);
    let mut changed = image.bytes.to_vec();
    changed[20] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, changed).unwrap();
    let error = world.client("a").pull("apps/web", "v1").await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
}

#[tokio::test]
async fn a_cached_manifest_is_not_served_after_its_deletion() {
    let world = World::new();
    let alice = world.client("user:alice");
    let image = alice.push_image("apps/web", "v1", "one").await;
    alice.pull("apps/web", "v1").await.unwrap();
    alice
        .delete_manifest("apps/web", &image.digest)
        .await
        .unwrap();
    let digest: &Digest = &image.digest;
    let error = alice.pull("apps/web", digest.as_str()).await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
    let repository = world.ports.metadata.repository(&name("apps/web")).await;
    assert!(repository.unwrap().is_some());
}
