//! The same promises on files and SQLite, on real threads and through a real restart.

use std::sync::Arc;

use futures_util::{StreamExt as _, future::join_all};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::{
    fill::{collect, fails_and_recovers, herd},
    upstream::{BodyPlan, CHUNK_BYTES, Call},
    world::{FRESH_FOR, World, content, filling, image, read, tagged},
};
use crate::{error::Error, ports::Settings, registry::Registry};

const NAME: &str = "library/alpine";

const BLOB_BYTES: usize = 100 * CHUNK_BYTES;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_readers_of_a_cold_blob_cause_one_fetch() {
    let folder = TempDir::new().unwrap();
    herd(World::durable(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_at_every_pace_get_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let world = World::durable(folder.path());
    let bytes = content(BLOB_BYTES, 1);
    let digest = world.blob(NAME, &bytes);
    let gate = Arc::new(Semaphore::new(50));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    let mut slow = fill.stream(0, None);
    let first = slow.next().await.unwrap().unwrap();
    let mut slowly = read(first).await.to_vec();
    let quick = (0..20).map(|reader| {
        let fill = fill.clone();
        tokio::spawn(async move { collect(&fill, reader * 1000, None).await })
    });
    let quick: Vec<_> = quick.collect();
    gate.add_permits(BLOB_BYTES);
    for (reader, read) in join_all(quick).await.into_iter().enumerate() {
        assert!(read.unwrap() == bytes[reader * 1000..]);
    }
    world.kept(NAME, &digest).await.unwrap();
    assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
    while let Some(more) = slow.next().await {
        slowly.extend_from_slice(&read(more.unwrap()).await);
    }
    assert!(slowly == bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bad_body_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let world = World::durable(folder.path());
    let bytes = content(BLOB_BYTES, 1);
    let digest = world.blob(NAME, &bytes);
    world.upstream.plan([BodyPlan {
        flip: Some(BLOB_BYTES - 1),
        ..BodyPlan::default()
    }]);
    let error = fails_and_recovers(&world, &bytes, &digest).await;
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broken_body_is_resumed() {
    let folder = TempDir::new().unwrap();
    let world = World::durable(folder.path());
    let bytes = content(BLOB_BYTES, 1);
    let digest = world.blob(NAME, &bytes);
    world.upstream.plan([BodyPlan::cut_at(777_777)]);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    assert_eq!(world.upstream.script().sent, BLOB_BYTES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_cold_pulls_of_a_tag_cost_one_get() {
    let folder = TempDir::new().unwrap();
    let world = Arc::new(World::durable(folder.path()));
    let manifest = image(&[]);
    world.manifest(NAME, "latest", &manifest);
    let pulls = (0..1000).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.pull(NAME, "latest").await.unwrap() })
    });
    for pulled in join_all(pulls).await {
        assert_eq!(pulled.unwrap().bytes, manifest);
    }
    assert_eq!(world.upstream.calls(), [Call::Manifest(tagged("latest"))]);
    world.clock.advance(FRESH_FOR);
    world.pull(NAME, "latest").await.unwrap();
    assert_eq!(world.upstream.calls(), [Call::Head(tagged("latest"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_is_served_after_a_restart_with_the_upstream_down() {
    let folder = TempDir::new().unwrap();
    let bytes = content(BLOB_BYTES, 1);
    let (blob, manifest, digest) = {
        let world = World::durable(folder.path());
        let blob = world.blob(NAME, &bytes);
        let manifest = image(&[(&blob, BLOB_BYTES)]);
        let digest = world.manifest(NAME, "latest", &manifest);
        world.pull(NAME, "latest").await.unwrap();
        world.read(NAME, &blob).await.unwrap();
        (blob, manifest, digest)
    };
    let world = World::durable(folder.path());
    world.upstream.fail(gantry_upstream::Kind::Unavailable);
    world.clock.advance(FRESH_FOR);
    let by_tag = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(by_tag.bytes, manifest);
    assert_eq!(by_tag.stale.unwrap().age, FRESH_FOR);
    let by_digest = world.pull_digest(NAME, &digest).await.unwrap();
    assert_eq!(by_digest.bytes, manifest);
    assert!(world.read(NAME, &blob).await.unwrap() == bytes);
}

#[test]
fn a_fill_that_a_dead_process_left_is_swept_and_fetched_anew() {
    let folder = TempDir::new().unwrap();
    let bytes = content(BLOB_BYTES, 1);
    let dying = tokio::runtime::Runtime::new().unwrap();
    dying.block_on(async {
        let world = World::durable(folder.path());
        let digest = world.blob(NAME, &bytes);
        let gate = Arc::new(Semaphore::new(50));
        world.upstream.plan([BodyPlan::gated(&gate)]);
        filling(world.open(NAME, &digest).await.unwrap());
        assert_eq!(world.staged().await, 1);
    });
    drop(dying);
    let next = tokio::runtime::Runtime::new().unwrap();
    next.block_on(async {
        let world = World::durable(folder.path());
        let digest = world.blob(NAME, &bytes);
        assert_eq!(world.stored(&digest).await, None);
        assert_eq!(world.staged().await, 1);
        let registry = Registry::new(world.ports.clone(), Settings::default());
        assert_eq!(registry.sweep_uploads().await.unwrap(), 1);
        assert_eq!(world.staged().await, 0);
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    });
}
