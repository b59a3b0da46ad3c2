//! A large blob comes in several requests at once: the same bytes, each fetched once, in bounded memory, whatever becomes of a request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::Digest;
use gantry_storage::{
    Kind as Store, MemoryBlobStore,
    faulty::{Call as Step, Faults, FaultyBlobStore},
};
use gantry_upstream::{Cause, Kind};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    fill::{collect, fails_and_recovers},
    upstream::{Announced, BodyPlan, CHUNK_BYTES, Call},
    world::{World, content, drain, filling, image},
};
use crate::{error::Error, mirror::parts::MAX_AHEAD, ports::Parallel};

const NAME: &str = "library/alpine";
const PART_BYTES: usize = 8 * CHUNK_BYTES;
/// The last part is a short one.
const BLOB_BYTES: usize = 8 * PART_BYTES - 1000;
const PARALLEL: Parallel = Parallel {
    ranges: 4,
    from_bytes: 2 * PART_BYTES as u64,
    part_bytes: PART_BYTES as u64,
};

/// A world that fetches in parts, and a cold blob whose manifest is here.
async fn world_of(mut world: World, parallel: Parallel, length: usize) -> (World, Bytes, Digest) {
    world.parallel(parallel);
    let bytes = content(length, 1);
    let digest = world.blob(NAME, &bytes);
    world.manifest(NAME, "latest", &image(&[(&digest, length)]));
    world.pull(NAME, "latest").await.unwrap();
    world.upstream.calls();
    (world, bytes, digest)
}

async fn cold() -> (World, Bytes, Digest) {
    world_of(World::new(), PARALLEL, BLOB_BYTES).await
}

/// The request for a part, from its byte `skipped` on.
fn part(digest: &Digest, number: usize, skipped: usize) -> Call {
    let (first, end) = (number * PART_BYTES, (number + 1) * PART_BYTES);
    let last = end.min(BLOB_BYTES) - 1;
    Call::Part(digest.clone(), (first + skipped) as u64, last as u64)
}

fn sent(world: &World) -> usize {
    world.upstream.script().sent
}

#[tokio::test(start_paused = true)]
async fn every_part_is_asked_for_once_and_in_order() {
    let (world, bytes, digest) = cold().await;
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    let parts = (0..8).map(|number| part(&digest, number, 0));
    assert_eq!(world.upstream.calls(), parts.collect::<Vec<_>>());
    assert_eq!(sent(&world), BLOB_BYTES);
    assert_eq!(world.stored(&digest).await, Some(BLOB_BYTES as u64));
}

#[tokio::test(start_paused = true)]
async fn other_blobs_come_in_one_request() {
    let small = 2 * PART_BYTES - 1;
    let (world, bytes, digest) = world_of(World::new(), PARALLEL, small).await;
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    assert_eq!(world.upstream.calls(), [Call::Blob(digest, 0)]);
    let unnamed = world.blob(NAME, &content(BLOB_BYTES, 2));
    world.read(NAME, &unnamed).await.unwrap();
    assert_eq!(world.upstream.calls(), [Call::Blob(unnamed, 0)]);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_throttles_each_connection_is_faster_in_parts() {
    let slow = BodyPlan {
        pace: Duration::from_secs(1),
        ..BodyPlan::default()
    };
    let mut took = Vec::new();
    for ranges in [1, 4] {
        let parallel = Parallel { ranges, ..PARALLEL };
        let (world, bytes, digest) = world_of(World::new(), parallel, BLOB_BYTES).await;
        world.upstream.plan(std::iter::repeat_n(slow.clone(), 20));
        let began = Instant::now();
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
        took.push(began.elapsed());
    }
    assert!(took[1] * 3 < took[0], "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn readers_follow_the_first_part_while_the_others_wait_in_bounded_memory() {
    let (world, bytes, digest) = cold().await;
    let gate = Arc::new(Semaphore::new(5));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    let early = 5 * CHUNK_BYTES;
    assert!(collect(&fill, 0, Some(early as u64 - 1)).await == bytes[..early]);
    while sent(&world) < early + 3 * PART_BYTES {
        tokio::task::yield_now().await;
    }
    for _turn in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.upstream.calls().len(), 4);
    assert_eq!(sent(&world), early + 3 * PART_BYTES);
    gate.add_permits(BLOB_BYTES);
    assert!(collect(&fill, 0, None).await == bytes);
    assert_eq!(sent(&world), BLOB_BYTES);
}

#[tokio::test(start_paused = true)]
async fn all_fills_together_have_bounded_memory() {
    let many = Parallel {
        ranges: 10 * MAX_AHEAD,
        ..PARALLEL
    };
    let (world, _, digest) = world_of(World::new(), many, 3 * MAX_AHEAD * PART_BYTES).await;
    let gate = Arc::new(Semaphore::new(1));
    world.upstream.plan([BodyPlan::gated(&gate)]);
    let fill = filling(world.open(NAME, &digest).await.unwrap());
    while sent(&world) < CHUNK_BYTES + MAX_AHEAD * PART_BYTES {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.upstream.calls().len(), 1 + MAX_AHEAD);
    gate.add_permits(BLOB_BYTES);
    fill.finished().await.unwrap();
    assert_eq!(world.mirrors.parts_ahead(), 0);
}

// --- an upstream that breaks off, refuses or lies ---

#[tokio::test(start_paused = true)]
async fn a_part_that_breaks_is_resumed_alone_where_it_broke() {
    for (number, clean) in [(0, false), (2, false), (3, true)] {
        let (world, bytes, digest) = cold().await;
        let broken = BodyPlan {
            clean,
            ..BodyPlan::cut_at(number * PART_BYTES + 20_000)
        };
        let well = std::iter::repeat_n(BodyPlan::default(), number);
        world.upstream.plan(well.chain([broken]));
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
        let calls = world.upstream.calls();
        assert!(calls.contains(&part(&digest, number, 20_000)), "{calls:?}");
        assert_eq!((calls.len(), sent(&world)), (9, BLOB_BYTES));
    }
}

/// Reads a blob whose first part waits until `count` requests were made.
async fn read_after(
    world: &World,
    digest: &Digest,
    count: usize,
    others: impl IntoIterator<Item = BodyPlan>,
) -> Vec<u8> {
    let gate = Arc::new(Semaphore::new(1));
    let first = [BodyPlan::gated(&gate)];
    world.upstream.plan(first.into_iter().chain(others));
    let fill = filling(world.open(NAME, digest).await.unwrap());
    // The manifest was asked for, too.
    world.upstream.asked(1 + count).await;
    gate.add_permits(BLOB_BYTES);
    collect(&fill, 0, None).await
}

#[tokio::test(start_paused = true)]
async fn a_part_that_breaks_too_often_is_left_to_one_stream() {
    let (world, bytes, digest) = cold().await;
    let broken = BodyPlan::cut_at(PART_BYTES + 1);
    let down = BodyPlan::refusing(Kind::Unavailable, Cause::Connect);
    let well = BodyPlan::default();
    let plans = [broken, well.clone(), well].into_iter();
    let plans = plans.chain(std::iter::repeat_n(down, 3));
    assert!(read_after(&world, &digest, 7, plans).await == bytes);
    let rest = Call::Blob(digest.clone(), PART_BYTES as u64 + 1);
    assert_eq!(world.upstream.calls().last(), Some(&rest));
    assert!(sent(&world) <= BLOB_BYTES + 2 * PART_BYTES);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_ignores_ranges_is_fetched_in_one_stream() {
    let (world, bytes, digest) = cold().await;
    world.upstream.plan([BodyPlan {
        ranges: false,
        ..BodyPlan::default()
    }]);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    assert_eq!(world.upstream.calls(), [part(&digest, 0, 0)]);
    assert_eq!(sent(&world), BLOB_BYTES);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_gets_ranges_wrong_is_fetched_in_one_stream() {
    let (world, bytes, digest) = cold().await;
    world
        .upstream
        .plan([BodyPlan::refusing(Kind::Invalid, Cause::Answer)]);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    assert_eq!(
        world.upstream.calls(),
        [part(&digest, 0, 0), Call::Blob(digest, 0)]
    );
}

#[tokio::test(start_paused = true)]
async fn other_answers_later_lead_to_one_stream_after_what_has_come() {
    let other_etag = BodyPlan {
        etag: "two",
        ..BodyPlan::default()
    };
    let other_size = BodyPlan {
        announces: Some(Announced::As(7)),
        ..BodyPlan::default()
    };
    let no_ranges = BodyPlan {
        ranges: false,
        ..BodyPlan::default()
    };
    for other in [other_etag, other_size, no_ranges] {
        let (world, bytes, digest) = cold().await;
        world
            .upstream
            .plan([BodyPlan::default(), BodyPlan::default(), other]);
        assert!(world.read(NAME, &digest).await.unwrap() == bytes);
        let calls = world.upstream.calls();
        let rest = Call::Blob(digest.clone(), 2 * PART_BYTES as u64);
        assert_eq!(calls.last(), Some(&rest), "{calls:?}");
        assert!(calls.len() <= 5);
        assert!(sent(&world) <= BLOB_BYTES + PART_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn who_limits_is_asked_for_fewer_parts_and_nothing_is_fetched_twice() {
    let (world, bytes, digest) = cold().await;
    let limit = BodyPlan::refusing(Kind::RateLimited, Cause::RateLimit);
    let well = BodyPlan::default();
    let plans = [well.clone(), limit, well];
    assert!(read_after(&world, &digest, 4, plans).await == bytes);
    let asked = |number| part(&digest, number, 0);
    let rest = Call::Blob(digest.clone(), 4 * PART_BYTES as u64);
    let expected = [asked(0), asked(1), asked(2), asked(3), asked(2), rest];
    assert_eq!(world.upstream.calls(), expected);
    assert_eq!(sent(&world), BLOB_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_part_without_a_place_for_its_request_is_asked_for_later() {
    let (world, bytes, digest) = cold().await;
    let busy = BodyPlan::refusing(Kind::Unavailable, Cause::Saturated);
    let plans = std::iter::repeat_n(busy, 3);
    assert!(read_after(&world, &digest, 4, plans).await == bytes);
    let calls = world.upstream.calls();
    assert_eq!(calls.len(), 8 + 3);
    let in_parts = calls.iter().all(|call| matches!(call, Call::Part(..)));
    assert!(in_parts, "{calls:?}");
    assert_eq!(sent(&world), BLOB_BYTES);
}

#[tokio::test(start_paused = true)]
async fn content_that_changes_between_parts_is_never_whole_nor_kept() {
    for number in [0, 3, 7] {
        let (world, bytes, digest) = cold().await;
        let changed = BodyPlan {
            flip: Some(number * PART_BYTES + 5),
            ..BodyPlan::default()
        };
        let well = std::iter::repeat_n(BodyPlan::default(), number);
        world.upstream.plan(well.chain([changed]));
        let error = fails_and_recovers(&world, &bytes, &digest).await;
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_part_is_not_taken() {
    let (world, bytes, digest) = cold().await;
    let long = BodyPlan {
        excess: 1,
        ..BodyPlan::default()
    };
    world.upstream.plan([long]);
    assert!(world.read(NAME, &digest).await.unwrap() == bytes);
    let parts = (0..8).map(|number| part(&digest, number, 0));
    assert_eq!(world.upstream.calls(), parts.collect::<Vec<_>>());
}

// --- a store without space ---

#[tokio::test(start_paused = true)]
async fn without_space_the_blob_passes_through_in_one_stream() {
    for (step, nth) in [(Step::Create, 1), (Step::Write, 20), (Step::Flush, 2)] {
        let faults = Faults::none();
        let store = FaultyBlobStore::new(Arc::new(MemoryBlobStore::new()), faults.clone());
        let (world, bytes, digest) =
            world_of(World::on(Arc::new(store)), PARALLEL, BLOB_BYTES).await;
        faults.fail(step, nth, Store::Full);
        let blob = world.open(NAME, &digest).await.unwrap();
        let (read, end) = drain(blob).await;
        end.unwrap();
        assert!(read == bytes, "{step:?} {nth}");
        world.kept(NAME, &digest).await.unwrap();
        assert_eq!(
            (world.stored(&digest).await, world.staged().await),
            (None, 0)
        );
        assert!(matches!(
            world.upstream.calls().last(),
            Some(Call::Blob(..))
        ));
        assert_eq!(world.mirrors.parts_ahead(), 0);
    }
}
