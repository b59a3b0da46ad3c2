//! A missing blob is fetched once, for any number of readers, and is whole for all of them or for none.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use gantry_model::Digest;
use gantry_storage::BlobStore;
use gantry_upstream::Kind;
use tokio::sync::Semaphore;

use super::{
    panicking::PanickingStore,
    upstream::{Announced, BodyPlan, CHUNK_BYTES, Call},
    world::{World, content, drain, filling, image, read, repository},
};
use crate::{
    error::Error,
    mirror::{Fill, MirroredBlob},
    ports::Settings,
    registry::Registry,
};

const NAME: &str = "library/alpine";

/// Long enough that a reader gets bytes before the end is verified.
const BLOB_BYTES: usize = 20 * CHUNK_BYTES;

fn cold_blob() -> (World, Bytes, Digest) {
    let world = World::new();
    let bytes = content(BLOB_BYTES, 1);
    let digest = world.blob(NAME, &bytes);
    (world, bytes, digest)
}

/// A blob whose fill stands after `chunks` chunks, until the gate lets more through.
async fn standing(world: &World, digest: &Digest, chunks: usize) -> (Arc<Semaphore>, MirroredBlob) {
    let gate = Arc::new(Semaphore::new(chunks));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let blob = world.open(NAME, digest).await.unwrap();
    (gate, blob)
}

// --- one fetch, many readers ---

pub(super) async fn herd(world: World) {
    let bytes = content(1 << 20, 2);
    let digest = world.blob(NAME, &bytes);
    let world = Arc::new(world);
    let readers = (0..500).map(|_| {
        let (world, digest) = (Arc::clone(&world), digest.clone());
        tokio::spawn(async move { world.read(NAME, &digest).await.unwrap() })
    });
    for read in join_all(readers).await {
        assert_eq!(read.unwrap(), bytes);
    }
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
    assert_eq!(world.staged().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_hundred_readers_of_a_cold_blob_cause_one_fetch() {
    herd(World::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_outlives_its_first_reader() {
    let (world, bytes, digest) = cold_blob();
    let (gate, first) = standing(&world, &digest, 10).await;
    let mut stream = filling(first).stream(0, None);
    stream.next().await.unwrap().unwrap();
    drop(stream);
    gate.add_permits(BLOB_BYTES);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_fill_outlives_a_client_that_leaves_before_the_first_byte() {
    let (world, bytes, digest) = cold_blob();
    let gate = world.upstream.gate();
    assert!(world.open(NAME, &digest).now_or_never().is_none());
    world.upstream.asked(1).await;
    gate.add_permits(1);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_joins_mid_stream_gets_the_whole() {
    let (world, bytes, digest) = cold_blob();
    let (gate, first) = standing(&world, &digest, 10).await;
    let second = world.open(NAME, &digest).await.unwrap();
    assert_eq!(second.size, Some(BLOB_BYTES as u64));
    gate.add_permits(BLOB_BYTES);
    let ((first, _), (second, end)) = tokio::join!(drain(first), drain(second));
    end.unwrap();
    assert_eq!(first, bytes);
    assert_eq!(second, bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_hold_the_fill() {
    let (world, bytes, digest) = cold_blob();
    let (gate, slow) = standing(&world, &digest, 10).await;
    let mut slow = filling(slow).stream(0, None);
    let first = slow.next().await.unwrap().unwrap();
    let mut slowly = read(first).await.to_vec();
    gate.add_permits(BLOB_BYTES);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
    while let Some(more) = slow.next().await {
        slowly.extend_from_slice(&read(more.unwrap()).await);
    }
    assert_eq!(slowly, bytes);
}

#[tokio::test(start_paused = true)]
async fn a_filled_blob_is_served_without_the_upstream() {
    let (mut world, bytes, digest) = cold_blob();
    world.read(NAME, &digest).await.unwrap();
    world.upstream.calls();
    world.restart();
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_blob_without_bytes_is_filled() {
    let world = World::new();
    let digest = world.blob(NAME, &Bytes::new());
    assert_eq!(world.read(NAME, &digest).await.unwrap(), b"");
    assert_eq!(world.stored(&digest).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_blob_whose_length_nobody_says_is_filled() {
    let (world, bytes, digest) = cold_blob();
    let gate = Arc::new(Semaphore::new(10));
    world.upstream.plan([BodyPlan {
        announces: None,
        ..BodyPlan::gated(&gate)
    }]);
    let blob = world.open(NAME, &digest).await.unwrap();
    assert_eq!(blob.size, None);
    let fill = filling(blob);
    assert!(fill.size().now_or_never().is_none());
    gate.add_permits(BLOB_BYTES);
    assert_eq!(fill.size().await.unwrap(), BLOB_BYTES as u64);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_fills_run_at_once() {
    let (mut world, bytes, digest) = cold_blob();
    let settings = Settings {
        max_fills: 1,
        ..Settings::default()
    };
    world.restart_with(&settings);
    let other_bytes = content(BLOB_BYTES, 9);
    let other = world.blob(NAME, &other_bytes);
    let (gate, first) = standing(&world, &digest, 10).await;
    let mut second = Box::pin(world.read(NAME, &other));
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
    gate.add_permits(BLOB_BYTES);
    assert_eq!(drain(first).await.0, bytes);
    assert_eq!(second.await.unwrap(), other_bytes);
}

// --- ranges ---

#[tokio::test(start_paused = true)]
async fn a_range_is_served_from_a_running_fill() {
    let (world, bytes, digest) = cold_blob();
    let (gate, blob) = standing(&world, &digest, 10).await;
    let fill = filling(blob);
    assert_eq!(collect(&fill, 1000, Some(1999)).await, bytes[1000..=1999]);
    let last = BLOB_BYTES as u64 - 1;
    let mut end = Box::pin(collect(&fill, last - 99, Some(last)));
    assert!((&mut end).now_or_never().is_none());
    gate.add_permits(BLOB_BYTES);
    assert_eq!(end.await, bytes[BLOB_BYTES - 100..]);
    assert_eq!(collect(&fill, 5, None).await, bytes[5..]);
}

pub(super) async fn collect(fill: &Fill, first: u64, last: Option<u64>) -> Vec<u8> {
    let mut stream = fill.stream(first, last);
    let mut bytes = Vec::new();
    while let Some(more) = stream.next().await {
        bytes.extend_from_slice(&read(more.unwrap()).await);
    }
    bytes
}

// --- an upstream that breaks off or lies ---

/// Pulls once: nothing whole may come of it and nothing stays; then pulls again, from an upstream that is well.
pub(super) async fn fails_and_recovers(world: &World, bytes: &Bytes, digest: &Digest) -> Error {
    let (received, error) = match world.open(NAME, digest).await {
        Ok(blob) => {
            let (received, end) = drain(blob).await;
            (received, end.expect_err("a bad body never ends well"))
        }
        Err(error) => (Vec::new(), error),
    };
    assert!(received.len() < bytes.len(), "not one reader got the end");
    assert_eq!(world.stored(digest).await, None);
    assert_eq!(world.staged().await, 0);
    assert_eq!(world.read(NAME, digest).await.unwrap(), *bytes);
    error
}

/// Fifty places: the first bytes, the last ones, both sides of the withheld end, and others evenly between.
fn cuts() -> Vec<usize> {
    let withheld = BLOB_BYTES - (64 << 10);
    let edges = [0, 1, withheld - 1, withheld, withheld + 1, BLOB_BYTES - 2];
    let between = (1..44).map(|place| place * BLOB_BYTES / 44);
    let cuts: Vec<usize> = edges.into_iter().chain(between).collect();
    [cuts, vec![BLOB_BYTES - 1]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_body_truncated_at_any_of_fifty_places_is_never_whole_nor_kept() {
    assert_eq!(cuts().len(), 50);
    for cut in cuts() {
        for clean in [false, true] {
            let (world, bytes, digest) = cold_blob();
            let plan = BodyPlan {
                clean,
                ..BodyPlan::cut_at(cut)
            };
            world.upstream.plan(std::iter::repeat_n(plan, 4));
            let error = fails_and_recovers(&world, &bytes, &digest).await;
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_truncated_body_of_unsaid_length_is_never_whole_nor_kept() {
    for cut in cuts() {
        let (world, bytes, digest) = cold_blob();
        world.upstream.plan([BodyPlan {
            announces: None,
            clean: true,
            ..BodyPlan::cut_at(cut)
        }]);
        let error = fails_and_recovers(&world, &bytes, &digest).await;
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_broken_at_any_of_fifty_places_is_resumed_without_fetching_a_byte_twice() {
    for cut in cuts() {
        let (world, bytes, digest) = cold_blob();
        world.upstream.plan([BodyPlan::cut_at(cut)]);
        assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
        assert_eq!(world.upstream.script().sent, BLOB_BYTES, "cut at {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_the_end_of_a_body_with_a_flipped_byte() {
    for flip in [0, BLOB_BYTES / 2, BLOB_BYTES - 1] {
        let (world, bytes, digest) = cold_blob();
        world.upstream.plan([BodyPlan {
            flip: Some(flip),
            ..BodyPlan::default()
        }]);
        let error = fails_and_recovers(&world, &bytes, &digest).await;
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_corrupt_body_get_all_but_its_end() {
    let (world, _, digest) = cold_blob();
    let gate = Arc::new(Semaphore::new(19));
    world.upstream.plan([BodyPlan {
        flip: Some(3),
        ..BodyPlan::gated(&gate)
    }]);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    let withheld = 64 << 10;
    let readable = (BLOB_BYTES - withheld) as u64;
    let early = collect(&fill, 0, Some(readable - 1)).await;
    assert_eq!(early.len(), BLOB_BYTES - withheld);
    let mut late = fill.stream(readable, None);
    assert!(late.next().now_or_never().is_none());
    gate.add_permits(1);
    assert!(late.next().await.unwrap().is_err());
    assert!(late.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn any_byte_may_be_the_last_while_nobody_says_the_length() {
    let (world, _, digest) = cold_blob();
    let gate = Arc::new(Semaphore::new(20));
    world.upstream.plan([BodyPlan {
        announces: None,
        cut: Some(BLOB_BYTES),
        ..BodyPlan::gated(&gate)
    }]);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    let readable = (BLOB_BYTES - (64 << 10)) as u64;
    collect(&fill, 0, Some(readable - 1)).await;
    assert!(world.upstream.script().sent >= BLOB_BYTES);
    assert!(fill.stream(readable, None).next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_body_longer_than_announced_is_refused() {
    let (world, bytes, digest) = cold_blob();
    world.upstream.plan([BodyPlan {
        excess: 1,
        ..BodyPlan::default()
    }]);
    let error = fails_and_recovers(&world, &bytes, &digest).await;
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_longer_than_its_manifest_says_is_refused() {
    for announces in [None, Some(Announced::Truly), Some(Announced::As(1 << 40))] {
        let (world, _, digest) = cold_blob();
        let manifest = image(&[(&digest, BLOB_BYTES - 1)]);
        world.manifest(NAME, "latest", &manifest);
        world.pull(NAME, "latest").await.unwrap();
        world.upstream.plan([BodyPlan {
            announces,
            ..BodyPlan::default()
        }]);
        let error = world.read(NAME, &digest).await.unwrap_err();
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
        assert_eq!(world.stored(&digest).await, None);
        assert_eq!(world.staged().await, 0);
    }
}

// --- resuming ---

#[tokio::test(start_paused = true)]
async fn a_broken_body_is_resumed_where_it_broke() {
    let (world, bytes, digest) = cold_blob();
    let cuts = [5000, 100_000, 200_001];
    world.upstream.plan(cuts.map(BodyPlan::cut_at));
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    let asked = [0, 5000, 100_000, 200_001].map(|offset| Call::Blob(digest.clone(), offset));
    assert_eq!(world.upstream.calls(), asked);
    assert_eq!(world.upstream.script().sent, BLOB_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_too_often_is_given_up() {
    let (world, bytes, digest) = cold_blob();
    let cuts = [1000, 2000, 3000, 4000];
    world.upstream.plan(cuts.map(BodyPlan::cut_at));
    let error = fails_and_recovers(&world, &bytes, &digest).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(world.upstream.calls().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn breaks_of_a_body_that_gets_on_are_forgiven() {
    let world = World::new();
    let bytes = content(26 << 20, 5);
    let digest = world.blob(NAME, &bytes);
    let cuts = [5, 10, 15, 20, 25].map(|mebibytes| BodyPlan::cut_at(mebibytes << 20));
    world.upstream.plan(cuts);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    assert_eq!(world.upstream.calls().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_ignores_ranges_is_skipped_forward() {
    let (world, bytes, digest) = cold_blob();
    let whole_again = BodyPlan {
        ranges: false,
        ..BodyPlan::default()
    };
    world
        .upstream
        .plan([BodyPlan::cut_at(123_456), whole_again]);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_changes_the_length_is_refused() {
    let (world, bytes, digest) = cold_blob();
    let other = BodyPlan {
        announces: Some(Announced::As(7)),
        ..BodyPlan::default()
    };
    world.upstream.plan([BodyPlan::cut_at(5000), other]);
    let error = fails_and_recovers(&world, &bytes, &digest).await;
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_break_after_the_last_byte_is_no_break() {
    let (world, bytes, digest) = cold_blob();
    world.upstream.plan([BodyPlan::cut_at(BLOB_BYTES)]);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_answers_is_waited_for() {
    let (world, _, digest) = cold_blob();
    world.upstream.fail(Kind::Refused);
    let gate = world.upstream.gate();
    let mut open = Box::pin(world.open(NAME, &digest));
    let waited = tokio::time::timeout(Duration::from_secs(60), &mut open).await;
    assert!(waited.is_err(), "an answer is not made up");
    gate.add_permits(1);
    let error = open.await.unwrap_err();
    assert!(matches!(error, Error::UpstreamRefused { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_first_byte_is_waited_for_only_so_long() {
    let (world, bytes, digest) = cold_blob();
    let (gate, blob) = standing(&world, &digest, 0).await;
    assert_eq!(blob.size, Some(BLOB_BYTES as u64));
    gate.add_permits(BLOB_BYTES);
    assert_eq!(drain(blob).await.0, bytes);
}

// --- our own failures ---

#[tokio::test(start_paused = true)]
async fn a_fill_that_panics_fails_its_readers_and_frees_its_place() {
    let store = Arc::new(PanickingStore::default());
    let world = World::on(Arc::clone(&store) as Arc<dyn BlobStore>);
    let bytes = content(BLOB_BYTES, 1);
    let digest = world.blob(NAME, &bytes);
    let (gate, first) = standing(&world, &digest, 10).await;
    let second = world.open(NAME, &digest).await.unwrap();
    store.arm();
    gate.add_permits(BLOB_BYTES);
    for blob in [first, second] {
        let (received, end) = drain(blob).await;
        assert!(received.len() < bytes.len());
        assert!(matches!(end, Err(Error::Internal { .. })), "{end:?}");
    }
    assert_eq!(world.staged().await, 0);
    store.disarm();
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_the_middle_starts_the_fill_anew() {
    let (mut world, bytes, digest) = cold_blob();
    let left = crate::staging::new_upload_id().unwrap();
    let blobs = Arc::clone(&world.ports.blobs);
    let mut writer = blobs.create(left, digest.algorithm()).await.unwrap();
    writer.write(bytes.slice(..1000)).await.unwrap();
    drop(writer);
    world.restart();
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
    assert_eq!(blobs.staged().await.unwrap(), [left]);
    let registry = Registry::new(world.ports.clone(), Settings::default());
    assert_eq!(registry.sweep_uploads().await.unwrap(), 1);
    assert_eq!(world.staged().await, 0);
    assert_eq!(world.read(NAME, &digest).await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn the_sweep_leaves_a_running_fill_alone() {
    let (mut world, bytes, digest) = cold_blob();
    let registry = Registry::new(world.ports.clone(), Settings::default());
    world.mirrors = registry.shared.mirrors.clone();
    let (gate, blob) = standing(&world, &digest, 10).await;
    assert_eq!(world.staged().await, 1);
    assert_eq!(registry.sweep_uploads().await.unwrap(), 0);
    gate.add_permits(BLOB_BYTES);
    assert_eq!(drain(blob).await.0, bytes);
}

// --- headers only ---

#[tokio::test(start_paused = true)]
async fn a_length_is_told_without_a_fill() {
    let (world, _, digest) = cold_blob();
    let repository = repository(NAME);
    let size = world.stat_blob(&repository, &digest).await.unwrap();
    assert_eq!(size, Some(BLOB_BYTES as u64));
    assert_eq!(world.upstream.calls(), [Call::Stat(digest.clone())]);
    let (gate, fill) = standing(&world, &digest, 10).await;
    world.upstream.calls();
    let size = world.stat_blob(&repository, &digest).await.unwrap();
    assert_eq!(size, Some(BLOB_BYTES as u64));
    assert_eq!(world.upstream.calls(), []);
    drop((gate, fill));
}

#[tokio::test(start_paused = true)]
async fn a_length_that_a_manifest_tells_is_not_asked_for_before_a_read() {
    let (world, _, digest) = cold_blob();
    let repository = repository(NAME);
    world.manifest(NAME, "latest", &image(&[(&digest, BLOB_BYTES)]));
    world.pull(NAME, "latest").await.unwrap();
    world.upstream.calls();
    let size = world
        .mirrors
        .expected_size(&repository, &digest, &crate::mirror::listing::system())
        .await
        .unwrap();
    assert_eq!(size, Some(BLOB_BYTES as u64));
    assert_eq!(world.upstream.calls(), []);
}
