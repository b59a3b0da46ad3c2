//! The end of a blob leaves when its digest is verified: readers do not wait for the publication, and what becomes of that is not theirs.

use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use gantry_storage::{
    FsBlobStore, Kind as Store,
    faulty::{Call as Step, Faults, FaultyBlobStore},
};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::{
    fill::collect,
    upstream::{BodyPlan, CHUNK_BYTES, Call},
    world::{World, content, drain, filling, read, repository},
};
use crate::{cache_counts::CacheOutcome, ports::Settings, registry::Registry};

const NAME: &str = "library/alpine";
const BLOB_BYTES: usize = 20 * CHUNK_BYTES;
/// Nothing of such a blob is readable before all of it is.
const SMALL_BYTES: usize = 1000;

#[tokio::test(start_paused = true)]
async fn the_last_bytes_do_not_wait_for_the_publication() {
    for (length, announces) in [
        (BLOB_BYTES, true),
        (BLOB_BYTES, false),
        (SMALL_BYTES, true),
        (SMALL_BYTES, false),
        (0, true),
    ] {
        let (world, faults, bytes, digest) = World::faulty(NAME, length);
        let publication = faults.hold(Step::Publish, 1);
        let plan = BodyPlan::default();
        world.upstream.plan([BodyPlan {
            announces: plan.announces.filter(|_| announces),
            ..plan
        }]);
        let blob = world.open(NAME, &digest).await.unwrap();
        assert_eq!(drain(blob).await.0, bytes, "{length} {announces}");
        assert_eq!(world.stored(&digest).await, None);
        publication.add_permits(1);
        world.kept(NAME, &digest).await.unwrap();
        assert_eq!(world.stored(&digest).await, Some(length as u64));
        assert_eq!(world.mirrors.fill_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_between_the_last_byte_and_the_publication_joins_the_fill() {
    let (world, faults, bytes, digest) = World::faulty(NAME, BLOB_BYTES);
    let publication = faults.hold(Step::Publish, 1);
    drop(drain(world.open(NAME, &digest).await.unwrap()).await);
    world.upstream.calls();
    let size = world.stat_blob(&repository(NAME), &digest).await;
    assert_eq!(size.unwrap(), Some(BLOB_BYTES as u64));
    let second = filling(world.open(NAME, &digest).await.unwrap());
    assert_eq!(second.size().await.unwrap(), BLOB_BYTES as u64);
    assert_eq!(
        collect(&second, BLOB_BYTES as u64 - 5, None).await,
        bytes[BLOB_BYTES - 5..]
    );
    let mut finished = Box::pin(second.finished());
    assert!((&mut finished).now_or_never().is_none());
    let mut settled = Box::pin(world.mirrors.settled());
    assert!((&mut settled).now_or_never().is_none());
    publication.add_permits(1);
    finished.await.unwrap();
    settled.await;
    assert_eq!(world.upstream.calls(), []);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_publication_that_fails_takes_nothing_from_readers_and_leaves_nothing() {
    for (kind, counted) in [
        (Store::Unavailable, CacheOutcome::Failed),
        (Store::Internal, CacheOutcome::Failed),
        (Store::Full, CacheOutcome::Passed),
    ] {
        let (world, faults, bytes, digest) = World::faulty(NAME, BLOB_BYTES);
        let publication = faults.hold(Step::Publish, 1);
        faults.fail(Step::Publish, 1, kind);
        let quick = world.open(NAME, &digest).await.unwrap();
        let mut slow = filling(world.open(NAME, &digest).await.unwrap()).stream(0, None);
        let mut slowly = read(slow.next().await.unwrap().unwrap()).await.to_vec();
        assert_eq!(drain(quick).await.0, bytes);
        let late = filling(world.open(NAME, &digest).await.unwrap());
        publication.add_permits(1);
        world.kept(NAME, &digest).await.unwrap_err();
        while let Some(more) = slow.next().await {
            slowly.extend_from_slice(&read(more.unwrap()).await);
        }
        assert_eq!(slowly, bytes, "{kind:?}");
        assert_eq!(collect(&late, 0, None).await, bytes, "{kind:?}");
        assert_eq!(world.stored(&digest).await, None);
        assert_eq!(world.staged().await, 0);
        assert_eq!(
            (world.ended(counted), world.ended(CacheOutcome::Filled)),
            (1, 0)
        );
        world.clock.advance(std::time::Duration::from_secs(1));
        assert_eq!(world.upstream.calls(), [Call::Blob(digest.clone(), 0)]);
        assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
        assert_eq!(world.upstream.calls(), [Call::Blob(digest.clone(), 0)]);
        assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_digest_is_not_even_offered_to_the_store() {
    let (world, faults, _, digest) = World::faulty(NAME, SMALL_BYTES);
    world.upstream.plan([BodyPlan {
        flip: Some(SMALL_BYTES - 1),
        ..BodyPlan::default()
    }]);
    world.read(NAME, &digest).await.unwrap_err();
    assert_eq!(faults.count(Step::Publish), 0);
    assert_eq!(world.staged().await, 0);
}

#[test]
fn a_process_that_dies_before_the_publication_leaves_nothing_whole() {
    let folder = TempDir::new().unwrap();
    let bytes = content(BLOB_BYTES, 1);
    let dying = tokio::runtime::Runtime::new().unwrap();
    let publication = dying.block_on(async {
        let faults = Faults::none();
        let store = FsBlobStore::open(folder.path()).unwrap();
        let world = World::on(Arc::new(FaultyBlobStore::new(
            Arc::new(store),
            faults.clone(),
        )));
        let digest = world.blob(NAME, &bytes);
        let publication: Arc<Semaphore> = faults.hold(Step::Publish, 1);
        let blob = world.open(NAME, &digest).await.unwrap();
        assert_eq!(drain(blob).await.0, bytes);
        publication
    });
    drop(dying);
    drop(publication);
    let next = tokio::runtime::Runtime::new().unwrap();
    next.block_on(async {
        let world = World::durable(folder.path());
        let digest = world.blob(NAME, &bytes);
        assert_eq!(world.stored(&digest).await, None);
        let registry = Registry::new(world.ports.clone(), Settings::default());
        assert_eq!(registry.sweep_uploads().await.unwrap(), 1);
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
        assert_eq!(world.upstream.calls(), [Call::Blob(digest.clone(), 0)]);
        assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
    });
}
