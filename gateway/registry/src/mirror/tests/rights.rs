//! Content that is here for one repository is not thereby readable in another (CVE-2024-39897), and a refused fill brings nothing.

use bytes::Bytes;
use gantry_model::{Algorithm, Change, Digest, UploadId};
use gantry_storage::{Commit, ContentOrigin};
use gantry_upstream::Kind;
use serde_json::json;

use super::{
    upstream::{BodyPlan, Call},
    world::{World, content, drain, image, image_of, layer, repository, sha256, upstream_of},
};
use crate::{error::Error, ports::Settings};

const PRIVATE: &str = "private/app";
const OTHER: &str = "public/app";

/// A blob that was filled for one repository.
async fn filled() -> (World, Bytes, Digest) {
    let world = World::new();
    let bytes = content(200_000, 3);
    let digest = world.blob(PRIVATE, &bytes);
    world.read(PRIVATE, &digest).await.unwrap();
    world.upstream.calls();
    (world, bytes, digest)
}

#[tokio::test(start_paused = true)]
async fn a_digest_alone_opens_nothing_in_another_repository() {
    let (world, _, digest) = filled().await;
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    assert_eq!(world.upstream.calls(), [Call::Stat(digest.clone())]);
    let size = world.stat_blob(&repository(OTHER), &digest).await;
    assert!(matches!(size, Err(Error::BlobUnknown { .. })), "{size:?}");
}

#[tokio::test(start_paused = true)]
async fn a_digest_alone_opens_nothing_while_the_upstream_cannot_say() {
    let (world, _, digest) = filled().await;
    world.upstream.fail(Kind::Unavailable);
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn content_that_the_upstream_has_there_too_is_linked_without_a_fetch() {
    let (world, bytes, digest) = filled().await;
    world.blob(OTHER, &bytes);
    assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), [Call::Stat(digest.clone())]);
    world.upstream.fail(Kind::Unavailable);
    assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_proves_nothing_by_naming_a_blob() {
    let (world, bytes, digest) = filled().await;
    world.manifest(OTHER, "latest", &image(&[(&digest, bytes.len())]));
    world.pull(OTHER, "latest").await.unwrap();
    world.upstream.calls();
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    let size = world.stat_blob(&repository(OTHER), &digest).await;
    assert!(matches!(size, Err(Error::BlobUnknown { .. })), "{size:?}");
    world.blob(OTHER, &bytes);
    world.upstream.calls();
    assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), [Call::Stat(digest)]);
}

#[tokio::test(start_paused = true)]
async fn a_head_of_another_length_or_of_none_proves_nothing() {
    for said in [Some(199_999), Some(200_001), None] {
        let (world, bytes, digest) = filled().await;
        let key = (OTHER.parse().unwrap(), digest.clone());
        world.upstream.script().stats.insert(key, said);
        let error = world.read(OTHER, &digest).await.unwrap_err();
        assert!(
            matches!(error, Error::BlobUnknown { .. }),
            "{said:?}: {error:?}"
        );
        world.blob(OTHER, &bytes);
        world.upstream.calls();
        assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
        let calls = world.upstream.calls();
        assert_eq!(
            calls,
            [Call::Stat(digest.clone()), Call::Blob(digest, 0)],
            "{said:?}"
        );
    }
}

/// Content that is here by another origin than the mirror's upstream.
async fn placed(origin: ContentOrigin, name: &str) -> (World, Bytes, Digest) {
    let world = World::new();
    let bytes = content(200_000, 3);
    let digest = sha256(&bytes);
    let upload = UploadId::from_random([1; 16]);
    let blobs = &world.ports.blobs;
    let mut writer = blobs.create(upload, Algorithm::Sha256).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    writer.commit(&digest).await.unwrap();
    let link = Commit::LinkBlob {
        repository: name.parse().unwrap(),
        origin,
        digest: digest.clone(),
        size: bytes.len() as u64,
        upload: None,
        principal: None,
    };
    world.ports.metadata.commit(link).await.unwrap();
    (world, bytes, digest)
}

#[tokio::test(start_paused = true)]
async fn content_of_another_origin_is_fetched_in_full_whatever_the_upstream_says_of_it() {
    for (origin, name) in [
        (ContentOrigin::Pushed, "apps/secret"),
        (upstream_of("https://other.test"), "other.test/secret"),
        // As after a change of the mirror's `url`, and where a repository was pushed to before it was a mirror's.
        (upstream_of("https://former.test"), "hub.test/public/app"),
        (ContentOrigin::Pushed, "hub.test/public/app"),
    ] {
        let (world, bytes, digest) = placed(origin, name).await;
        let key = (OTHER.parse().unwrap(), digest.clone());
        world
            .upstream
            .script()
            .stats
            .insert(key, Some(bytes.len() as u64));
        world.manifest(OTHER, "latest", &image(&[(&digest, bytes.len())]));
        world.pull(OTHER, "latest").await.unwrap();
        let error = world.read(OTHER, &digest).await.unwrap_err();
        assert!(
            matches!(error, Error::BlobUnknown { .. }),
            "{name}: {error:?}"
        );
        world.upstream.fail(Kind::Unavailable);
        let error = world.read(OTHER, &digest).await.unwrap_err();
        assert!(
            matches!(error, Error::Unavailable { .. }),
            "{name}: {error:?}"
        );
        world.upstream.recover();
        world.blob(OTHER, &bytes);
        world.upstream.calls();
        assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
        assert_eq!(
            world.upstream.calls(),
            [Call::Blob(digest.clone(), 0)],
            "{name}"
        );
        assert_eq!(world.read(OTHER, &digest).await.unwrap(), bytes);
        assert_eq!(world.upstream.calls(), [], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirror_with_another_url_starts_without_possessions() {
    let (mut world, bytes, digest) = filled().await;
    let manifest = image(&[(&digest, bytes.len())]);
    let named = world.manifest(PRIVATE, "latest", &manifest);
    world.pull(PRIVATE, "latest").await.unwrap();
    for mirror in world.ports.mirrors.values_mut() {
        mirror.origin = upstream_of("https://moved.test");
    }
    world.mirrors = world
        .mirrors
        .reconfigured(&world.ports, &Settings::default());
    world.upstream.fail(Kind::Unavailable);
    let pulled = world.pull(PRIVATE, "latest").await.unwrap_err();
    assert!(matches!(pulled, Error::Unavailable { .. }), "{pulled:?}");
    let pulled = world.pull_digest(PRIVATE, &named).await.unwrap_err();
    assert!(matches!(pulled, Error::Unavailable { .. }), "{pulled:?}");
    let read = world.read(PRIVATE, &digest).await.unwrap_err();
    assert!(matches!(read, Error::Unavailable { .. }), "{read:?}");
    world.upstream.recover();
    world.upstream.calls();
    world.pull(PRIVATE, "latest").await.unwrap();
    assert_eq!(world.read(PRIVATE, &digest).await.unwrap(), bytes);
    let calls = world.upstream.calls();
    assert!(calls.contains(&Call::Blob(digest, 0)), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fill_of_a_former_upstream_is_not_joined() {
    let mut world = World::new();
    let bytes = content(500_000, 4);
    let digest = world.blob(OTHER, &bytes);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(20));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let running = world.open(OTHER, &digest).await.unwrap();
    for mirror in world.ports.mirrors.values_mut() {
        mirror.origin = upstream_of("https://moved.test");
    }
    world.mirrors = world
        .mirrors
        .reconfigured(&world.ports, &Settings::default());
    world.upstream.script().blobs.clear();
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    gate.add_permits(1_000);
    let (whole, end) = drain(running).await;
    end.unwrap();
    assert_eq!(whole, bytes);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_lies_elsewhere_proves_nothing() {
    let (world, bytes, digest) = filled().await;
    let mut foreign = layer(&digest, bytes.len());
    foreign["urls"] = json!(["https://elsewhere.test/layer"]);
    world.manifest(OTHER, "latest", &image_of(&[foreign]));
    world.pull(OTHER, "latest").await.unwrap();
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn each_repository_fetches_for_itself() {
    let world = World::new();
    let bytes = content(200_000, 3);
    let digest = world.blob(PRIVATE, &bytes);
    let gate = world.upstream.gate();
    let (private, other) = tokio::join!(
        async {
            gate.add_permits(2);
            world.read(PRIVATE, &digest).await
        },
        world.read(OTHER, &digest)
    );
    assert_eq!(private.unwrap(), bytes);
    assert!(matches!(other, Err(Error::BlobUnknown { .. })), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_of_another_repository_is_asked_for_again() {
    let world = World::new();
    let manifest = image(&[]);
    let digest = world.manifest(PRIVATE, "latest", &manifest);
    world.pull(PRIVATE, "latest").await.unwrap();
    let error = world.pull_digest(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
}

// --- admission of fills ---

#[tokio::test(start_paused = true)]
async fn a_refused_blob_is_not_fetched() {
    let world = World::new();
    let bytes = content(1000, 4);
    let digest = world.blob(OTHER, &bytes);
    world.admission.refuse();
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert_eq!(world.upstream.calls(), []);
    assert_eq!(world.stored(&digest).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_reader_gets_nothing_of_a_fill_that_runs_for_another() {
    let world = World::new();
    let digest = world.blob(OTHER, &content(500_000, 4));
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(20));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let _running = world.open(OTHER, &digest).await.unwrap();
    world.admission.refuse();
    let error = world.read(OTHER, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_manifest_is_not_stored() {
    let world = World::new();
    let manifest = image(&[]);
    let digest = world.manifest(OTHER, "latest", &manifest);
    world.admission.refuse();
    let error = world.pull(OTHER, "latest").await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert_eq!(world.stored(&digest).await, None);
    let asked = world.admission.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].change, Change::Fill);
    assert_eq!(asked[0].target.as_ref().unwrap().digest, digest);
    assert_eq!(asked[0].manifest.as_ref(), Some(&manifest));
    assert_eq!(
        asked[0].tag.as_ref().map(ToString::to_string).as_deref(),
        Some("latest")
    );
}

#[tokio::test(start_paused = true)]
async fn the_hooks_are_told_which_manifests_name_a_blob() {
    let world = World::new();
    let bytes = content(1000, 4);
    let digest = world.blob(OTHER, &bytes);
    let parent = world.manifest(OTHER, "latest", &image(&[(&digest, 1000)]));
    world.pull(OTHER, "latest").await.unwrap();
    world.admission.asked();
    world.read(OTHER, &digest).await.unwrap();
    let asked = world.admission.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].parents, [parent]);
    assert_eq!(asked[0].target.as_ref().unwrap().size, 1000);
}
