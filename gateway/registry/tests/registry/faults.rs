//! A store that fails at any step of a push loses nothing acknowledged and shows nothing by halves.

use std::sync::Arc;

use gantry_model::UploadId;
use gantry_registry::{Body, Error, Outcome, Settings};
use gantry_storage::{
    Kind,
    faulty::{Call, Faults, FaultyBlobStore, FaultyMetadata},
    memory::{MemoryBlobStore, MemoryMetadata},
};

use crate::harness::{Client, Content, World, bytes_of, image, page, sha256, stores, whole};

const REPOSITORY: &str = "apps/web";

/// Calls that a push may make.
const CALLS: [Call; 15] = [
    Call::Stat,
    Call::Create,
    Call::Resume,
    Call::Discard,
    Call::Write,
    Call::Flush,
    Call::Publish,
    Call::Manifest,
    Call::Tag,
    Call::Blob,
    Call::Commit,
    Call::StartUpload,
    Call::Upload,
    Call::EndUpload,
    Call::StaleUploads,
];

// --- a push, step by step ---

/// What was acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    config: bool,
    layer: bool,
    image: bool,
}

async fn chunked(client: &Client, text: &'static str) -> Result<Outcome, Error> {
    let upload = client.start(REPOSITORY).await?;
    client.append(REPOSITORY, upload, None, whole(text)).await?;
    let digest = sha256(text.as_bytes());
    client
        .commit(REPOSITORY, upload, &digest, Body::empty())
        .await
}

fn pushed() -> Content {
    image("new config", &["new layer"])
}

/// Pushes as a client would that carries on after every failure.
async fn push(client: &Client) -> Acknowledged {
    let config = chunked(client, "new config").await;
    let layer = client.push_blob(REPOSITORY, b"new layer").await;
    let image = client
        .push_tagged(REPOSITORY, "v1", &["v2"], &pushed())
        .await;
    let (config, layer, image) = (config.map(drop), layer.map(drop), image.map(drop));
    for result in [&config, &layer, &image] {
        match result {
            Ok(()) | Err(Error::Unavailable { .. } | Error::Internal { .. }) => {}
            Err(Error::ManifestBlobUnknown { .. }) => assert!(config.is_err() || layer.is_err()),
            Err(error) => panic!("{error:?}"),
        }
    }
    Acknowledged {
        config: config.is_ok(),
        layer: layer.is_ok(),
        image: image.is_ok(),
    }
}

/// A world with an image under `v1`, and one on the same stores that fail as it is told.
struct Worlds {
    good: World,
    bad: World,
    faults: Faults,
    old: Content,
}

impl Worlds {
    async fn new() -> Self {
        let blobs = Arc::new(MemoryBlobStore::new());
        let metadata = Arc::new(MemoryMetadata::new());
        let faults = Faults::none();
        let bad_blobs = FaultyBlobStore::new(Arc::clone(&blobs) as _, faults.clone());
        let bad_metadata = FaultyMetadata::new(Arc::clone(&metadata), faults.clone());
        let bad = stores(Arc::new(bad_blobs), &Arc::new(bad_metadata));
        let good = World::on(stores(blobs, &metadata), Settings::default());
        let alice = good.client("alice");
        let old = alice.push_image(REPOSITORY, "v1", "old").await;
        drop(alice);
        Self {
            old,
            good: good.restarted(),
            bad: World::on(bad, Settings::default()),
            faults,
        }
    }
}

async fn check(good: &World, acknowledged: &Acknowledged, old: &Content) {
    let alice = good.client("alice");
    let new = pushed();
    for (text, there) in [
        ("new config", acknowledged.config),
        ("new layer", acknowledged.layer),
    ] {
        let digest = sha256(text.as_bytes());
        match alice.pull_blob(REPOSITORY, &digest, None).await {
            Ok(served) => assert_eq!(bytes_of(&served).await, text),
            Err(error) => assert!(!there, "lost {text}: {error:?}"),
        }
    }
    let (tags, _) = alice.tags(REPOSITORY, page(None, None)).await.unwrap();
    assert!(tags.contains(&"v1".to_owned()));
    for tag in &tags {
        let served = alice.pull(REPOSITORY, tag).await.unwrap().bytes;
        assert!(served == old.bytes || served == new.bytes);
    }
    let moved = alice.pull(REPOSITORY, "v1").await.unwrap().bytes == new.bytes;
    let made = tags.contains(&"v2".to_owned());
    assert_eq!(moved, made, "tags of one push moved by halves");
    assert!(moved || !acknowledged.image, "an acknowledged push is lost");
    if moved {
        alice.pull(REPOSITORY, new.digest.as_str()).await.unwrap();
    }
}

/// How a call fails.
const FAILURES: [(bool, Kind); 4] = [
    (false, Kind::Unavailable),
    (true, Kind::Unavailable),
    (false, Kind::Full),
    (true, Kind::Internal),
];

fn plan(faults: &Faults, call: Call, nth: u64, (after_the_fact, kind): (bool, Kind)) {
    if after_the_fact {
        faults.fail_after(call, nth, kind);
    } else {
        faults.fail(call, nth, kind);
    }
}

#[tokio::test]
async fn a_failure_at_any_step_of_a_push_loses_nothing_and_shows_nothing_by_halves() {
    let worlds = Worlds::new().await;
    let acknowledged = push(&worlds.bad.client("alice")).await;
    assert!(acknowledged.config && acknowledged.layer && acknowledged.image);
    check(&worlds.good, &acknowledged, &worlds.old).await;
    let counts = CALLS.map(|call| (call, worlds.faults.count(call)));
    let steps = counts
        .into_iter()
        .flat_map(|(call, count)| (1..=count).map(move |nth| (call, nth)));
    let steps: Vec<_> = steps.collect();
    assert!(steps.len() > 20, "{steps:?}");
    for (call, nth) in steps {
        for failure in FAILURES {
            fail_at(call, nth, failure).await;
        }
    }
}

async fn fail_at(call: Call, nth: u64, failure: (bool, Kind)) {
    let Worlds {
        good,
        bad,
        faults,
        old,
    } = Worlds::new().await;
    plan(&faults, call, nth, failure);
    let acknowledged = push(&bad.client("alice")).await;
    assert_eq!(faults.left(), 0, "{call:?} {nth} was not reached");
    drop(bad);
    check(&good, &acknowledged, &old).await;
    sweep(&good).await;
    check(&good, &acknowledged, &old).await;
    // Trying again succeeds.
    let again = push(&good.client("alice")).await;
    assert!(
        again.config && again.layer && again.image,
        "{call:?} {nth} {failure:?}"
    );
}

/// After the sessions' lifetime nothing of a failed push is left.
async fn sweep(world: &World) {
    let lifetime = world.settings.upload_lifetime.as_millis();
    let lifetime = u64::try_from(lifetime).expect("a lifetime");
    world.clock.advance_ms(lifetime + 1);
    world.registry.sweep_uploads().await.unwrap();
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

/// A session that stands at five bytes, and the failure of the next append, after a restart.
async fn append_with_failure(call: Call, kind: Kind) -> (World, UploadId, Error) {
    let Worlds { bad, faults, .. } = Worlds::new().await;
    let upload = bad.client("alice").start(REPOSITORY).await.unwrap();
    let first = bad.client("alice");
    first
        .append(REPOSITORY, upload, None, whole("hello"))
        .await
        .unwrap();
    drop(first);
    let bad = bad.restarted();
    faults.fail(call, 1, kind);
    let alice = bad.client("alice");
    let error = alice.append(REPOSITORY, upload, None, whole(", world"));
    let error = error.await.unwrap_err();
    (bad, upload, error)
}

#[tokio::test]
async fn a_session_goes_on_after_its_store_failed_for_a_moment() {
    for call in [Call::Upload, Call::Resume, Call::Write, Call::Flush] {
        let (world, upload, error) = append_with_failure(call, Kind::Unavailable).await;
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let alice = world.client("alice");
        let received = alice.status(REPOSITORY, upload).await.unwrap();
        let rest = match received {
            5 => ", world",
            12 => "",
            other => panic!("{other} bytes"),
        };
        let digest = sha256(b"hello, world");
        alice
            .commit(REPOSITORY, upload, &digest, whole(rest))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_gets_a_sessions_space_back_at_once() {
    for call in [Call::Write, Call::Flush] {
        let (world, upload, error) = append_with_failure(call, Kind::Full).await;
        let again = matches!(
            error,
            Error::Unavailable {
                retry_after: Some(_),
                ..
            }
        );
        assert!(again, "{error:?}");
        assert!(world.ports.blobs.staged().await.unwrap().is_empty());
        let error = world.client("alice").status(REPOSITORY, upload).await;
        assert!(matches!(error, Err(Error::BlobUploadUnknown)), "{error:?}");
    }
}

#[tokio::test]
async fn a_store_that_fails_while_a_pull_looks_for_it_is_never_an_unknown() {
    for call in [Call::Tag, Call::Manifest, Call::Open, Call::ReadAt] {
        for kind in [Kind::Corrupt, Kind::Unavailable] {
            let Worlds { bad, faults, .. } = Worlds::new().await;
            faults.fail(call, 1, kind);
            let error = bad.client("alice").pull(REPOSITORY, "v1").await;
            let expected = match error.unwrap_err() {
                Error::Internal { .. } => Kind::Corrupt,
                Error::Unavailable { .. } => Kind::Unavailable,
                error => panic!("{call:?}: {error:?}"),
            };
            assert_eq!(kind, expected, "{call:?}");
            bad.client("alice").pull(REPOSITORY, "v1").await.unwrap();
        }
    }
}
