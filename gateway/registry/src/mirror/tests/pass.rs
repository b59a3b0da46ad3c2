//! A store without space: the readers that are there get every byte, verified, in bounded memory, and nothing is kept.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use gantry_model::Digest;
use gantry_storage::{
    Kind as Store,
    faulty::{Call as Step, Faults},
};
use tokio::sync::Semaphore;

use super::{
    upstream::{BodyPlan, CHUNK_BYTES, Call},
    world::{World, drain, filling, image, read},
};
use crate::{cache_counts::CacheOutcome, error::Error};

const NAME: &str = "library/alpine";
/// Several windows.
const BLOB_BYTES: usize = 5 << 20;

fn world() -> (World, Faults, Bytes, Digest) {
    World::faulty(NAME, BLOB_BYTES)
}

fn passed(world: &World) -> u64 {
    world.ended(CacheOutcome::Passed)
}

async fn nothing_is_kept(world: &World, digest: &Digest) {
    assert_eq!(world.stored(digest).await, None);
    assert_eq!(world.staged().await, 0);
}

#[tokio::test(start_paused = true)]
async fn wherever_the_space_ends_the_reader_gets_the_whole_and_nothing_is_kept() {
    for (step, nth) in [
        (Step::Create, 1),
        (Step::Write, 1),
        (Step::Write, 100),
        (Step::Flush, 1),
        (Step::Flush, 3),
        (Step::Publish, 1),
    ] {
        let (world, faults, bytes, digest) = world();
        faults.fail(step, nth, Store::Full);
        assert!(
            world.read(NAME, &digest).await.unwrap() == bytes,
            "{step:?} {nth}"
        );
        nothing_is_kept(&world, &digest).await;
        assert_eq!((faults.left(), passed(&world)), (0, 1), "{step:?} {nth}");
        // At most what was on its way to the store is fetched twice.
        let sent = world.upstream.script().sent;
        assert!(sent <= BLOB_BYTES + (1 << 20), "{step:?} {nth}: {sent}");
        world.clock.advance(Duration::from_secs(1));
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
        assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_digest_is_never_whole_without_space_either() {
    let (world, faults, bytes, digest) = world();
    for flip in [0, BLOB_BYTES / 2, BLOB_BYTES - 1] {
        faults.fail(Step::Flush, 3, Store::Full);
        let plan = BodyPlan {
            flip: Some(flip),
            ..BodyPlan::default()
        };
        world.upstream.plan([plan.clone(), plan]);
        world.clock.advance(Duration::from_secs(1));
        let (received, end) = drain(world.open(NAME, &digest).await.unwrap()).await;
        assert!(received.len() < bytes.len());
        assert!(matches!(end, Err(Error::UpstreamInvalid { .. })), "{end:?}");
        nothing_is_kept(&world, &digest).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_break_is_resumed_without_space_too() {
    let (world, faults, bytes, digest) = world();
    faults.fail(Step::Create, 1, Store::Full);
    world.upstream.plan([BodyPlan::cut_at(BLOB_BYTES / 2 + 1)]);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    let half = BLOB_BYTES as u64 / 2 + 1;
    let calls = [
        Call::Blob(digest.clone(), 0),
        Call::Blob(digest.clone(), half),
    ];
    assert_eq!(world.upstream.calls(), calls);
    nothing_is_kept(&world, &digest).await;
}

#[tokio::test(start_paused = true)]
async fn readers_that_are_there_share_a_fetch_and_a_later_one_makes_his_own() {
    let (world, faults, bytes, digest) = world();
    faults.fail(Step::Flush, 3, Store::Full);
    let gate = Arc::new(Semaphore::new(4));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let first = world.open(NAME, &digest).await.unwrap();
    let second = world.open(NAME, &digest).await.unwrap();
    gate.add_permits(BLOB_BYTES);
    let later = async {
        world.upstream.asked(2).await;
        world.read(NAME, &digest).await.unwrap()
    };
    let ((one, _), (two, _), three) = tokio::join!(drain(first), drain(second), later);
    assert!(one == bytes && two == bytes && three == bytes);
    nothing_is_kept(&world, &digest).await;
    assert_eq!(world.upstream.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_his_own_holds_the_upstream_and_memory_stays_bounded() {
    let (world, faults, bytes, digest) = world();
    faults.fail(Step::Create, 1, Store::Full);
    let mut slow = filling(world.open(NAME, &digest).await.unwrap()).stream(0, None);
    let mut got = Vec::new();
    while let Some(more) = slow.next().await {
        got.extend_from_slice(&read(more.unwrap()).await);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let ahead = world.upstream.script().sent - got.len();
        assert!(
            ahead <= (1 << 20) + 2 * CHUNK_BYTES,
            "{ahead} bytes in memory"
        );
    }
    assert!(got == bytes);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_holds_others_up_is_let_go_and_they_get_the_whole() {
    let (world, faults, bytes, digest) = world();
    faults.fail(Step::Flush, 3, Store::Full);
    let gate = Arc::new(Semaphore::new(4));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let slow = world.open(NAME, &digest).await.unwrap();
    let quick = world.open(NAME, &digest).await.unwrap();
    let mut slow = filling(slow).stream(0, None);
    let mut got = read(slow.next().await.unwrap().unwrap()).await.to_vec();
    gate.add_permits(BLOB_BYTES);
    assert!(drain(quick).await.0 == bytes);
    let end = loop {
        match slow.next().await.unwrap() {
            Ok(more) => got.extend_from_slice(&read(more).await),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, Error::Unavailable { .. }), "{end:?}");
    assert!(got.len() < BLOB_BYTES && bytes.starts_with(&got));
}

#[tokio::test(start_paused = true)]
async fn without_a_reader_nothing_goes_on() {
    let (world, faults, _, digest) = world();
    faults.fail(Step::Create, 1, Store::Full);
    let gate = Arc::new(Semaphore::new(8));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let stream = filling(world.open(NAME, &digest).await.unwrap()).stream(0, None);
    drop(stream);
    gate.add_permits(BLOB_BYTES);
    while passed(&world) == 0 && world.ended(CacheOutcome::Failed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(passed(&world), 0);
    assert!(world.upstream.script().sent < BLOB_BYTES / 2);
}

#[tokio::test(start_paused = true)]
async fn a_range_passes_through_too() {
    let (world, faults, bytes, digest) = world();
    faults.fail(Step::Create, 1, Store::Full);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    let (first, last) = (3 << 20, (4 << 20) - 1);
    let mut stream = fill.stream(first, Some(last));
    drop(fill);
    let mut got = Vec::new();
    while let Some(more) = stream.next().await {
        got.extend_from_slice(&read(more.unwrap()).await);
    }
    assert!(got == bytes[3 << 20..4 << 20]);
    assert!(stream.next().now_or_never().flatten().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_manifest_without_space_is_served_and_not_kept() {
    let (world, faults, ..) = world();
    let layer = super::world::sha256(b"x");
    let bytes = image(&[(&layer, 1)]);
    let digest = world.manifest(NAME, "latest", &bytes);
    for _again in 0..2 {
        faults.fail(Step::Create, 1, Store::Full);
        let served = world.pull(NAME, "latest").await.unwrap();
        assert_eq!((&served.bytes, &served.record.digest), (&bytes, &digest));
        assert_eq!(served.tag.unwrap().digest, digest);
    }
    faults.fail(Step::Create, 1, Store::Full);
    assert_eq!(world.pull_digest(NAME, &digest).await.unwrap().bytes, bytes);
    assert_eq!(world.stored(&digest).await, None);
    world.pull(NAME, "latest").await.unwrap();
    assert!(world.stored(&digest).await.is_some());
}
